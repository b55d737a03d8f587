"""How each method is built for the tests that all methods pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from afclip_lightning.methods.afclip import AFCLIP
from afclip_lightning.methods.anomalyclip import AnomalyCLIP
from afclip_lightning.methods.anovl import AnoVL
from afclip_lightning.methods.aprilgan import APRILGAN
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.methods.clip import CLIP
from afclip_lightning.methods.faprompt import FAPrompt
from afclip_lightning.methods.kanoclip import KAnoCLIP
from afclip_lightning.methods.nearest_neighbours import NearestNeighbours
from afclip_lightning.methods.patch_rarity import PatchRarity
from afclip_lightning.methods.winclip import WinCLIP

KNOWLEDGE = str(Path(__file__).with_name("kanoclip_base.yaml"))

VV: dict[str, Any] = {"vv_from": 3, "prompt_depth": 4}  # the text tower of the embedded backbone has 4 blocks
KANO: dict[str, Any] = {
    "layers": (3, 5, 6, 8),
    "vv_from": 3,
    "knowledge": KNOWLEDGE,
}
Make = Callable[..., AnomalyMethod]
METHODS: dict[str, tuple[Make, dict[str, Any]]] = {
    "AF-CLIP": (AFCLIP, {"layers": (2, 4, 6, 8)}),
    "AnomalyCLIP": (AnomalyCLIP, {**VV, "layers": (8,)}),
    "AnomalyCLIP, four layers": (AnomalyCLIP, {**VV, "layers": (3, 5, 6, 8)}),
    "AnomalyCLIP Ensemble": (AnomalyCLIP, {**VV, "layers": (8,), "ensemble": 2}),
    "AnomalyCLIP Ensemble*": (AnomalyCLIP, {**VV, "layers": (8,), "n_abnormal_prompts": 3}),
    "FAPrompt": (FAPrompt, {**VV, "layer": 8}),
    "FAPrompt as released": (FAPrompt, {**VV, "layer": 8, "prior_patches": "first_k", "image_ce_weight": 1.0}),
    "FAPrompt, image token": (FAPrompt, {**VV, "layer": 8, "prior_patches": "image_token"}),
    "FAPrompt without DAP": (FAPrompt, {**VV, "layer": 8, "dap": False}),
    "FAPrompt without CAP": (FAPrompt, {**VV, "layer": 8, "n_abnormal_prompts": 1}),
    "FAPrompt without deep tokens": (FAPrompt, {"vv_from": 3, "layer": 8, "prompt_depth": 1}),
    "FAPrompt, best match": (FAPrompt, {**VV, "layer": 8, "aggregation": "best_match"}),
    "FAPrompt, weighted": (FAPrompt, {**VV, "layer": 8, "aggregation": "weighted"}),
    "APRIL-GAN": (APRILGAN, {"layers": (2, 4, 6, 8)}),
    "KAnoCLIP": (KAnoCLIP, KANO),
    "KAnoCLIP without KnPL": (KAnoCLIP, {**KANO, "learnable_prompts": False}),
    "KAnoCLIP without CLIP-VV": (KAnoCLIP, {**KANO, "vv_from": None}),
    "KAnoCLIP without Bi-CMCI": (KAnoCLIP, {**KANO, "interaction": False}),
    "KAnoCLIP without Conv-Adapter": (KAnoCLIP, {**KANO, "conv_adapter": None}),
    "KAnoCLIP, Eq. (11) as printed": (KAnoCLIP, {**KANO, "conv_adapter": "global", "adapter_residual": False}),
}
SMALL: dict[str, tuple[Make, dict[str, Any]]] = {  # on a backbone of 3 blocks, 2 of text, and 4 patches
    "AF-CLIP": (AFCLIP, {"layers": (1, 3), "scales": (1, 3)}),
    "AnomalyCLIP": (AnomalyCLIP, {"layers": (2, 3), "vv_from": 2, "prompt_depth": 2}),
    "FAPrompt": (FAPrompt, {"layer": 3, "vv_from": 2, "prompt_depth": 2, "n_prior_patches": 2}),
    "APRIL-GAN": (APRILGAN, {"layers": (1, 3)}),
    "KAnoCLIP": (KAnoCLIP, {"layers": (2, 3), "vv_from": 2, "knowledge_weight": 0.0}),
}
# Methods that train nothing, and score an image by itself or beside few-shot images. MuSc and Dual-Image CLIP
# compare test images with each other: their own tests say what may depend on what.
UNTRAINED: dict[str, tuple[Make, dict[str, Any]]] = {
    "CLIP": (CLIP, {}),
    "WinCLIP": (WinCLIP, {"window_sizes": (12,)}),
    "WinCLIP+": (WinCLIP, {"window_sizes": (12,), "k_shot": 2}),
    "AnoVL": (AnoVL, {"augment": False, "steps": 2}),
    "Nearest neighbours": (NearestNeighbours, {"layers": (2, 4, 6, 8), "k_shot": 2}),
    "Patch rarity": (PatchRarity, {"layers": (2, 4, 6, 8)}),
}
