"""Every method of the package: how it is built for the common tests, and its properties."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afclip_lightning.engine.factory import methods
from afclip_lightning.methods.base import AnomalyMethod

KNOWLEDGE = str(Path(__file__).with_name("kanoclip_base.yaml"))
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """The arguments of a method, by the CLIP that it is built on, and its properties.

    Attributes:
        small: Arguments on the CLIP of three blocks of `clips.py`, whose text tower has two.
        tiny: Arguments on the package's CLIP of eight blocks, whose text tower has four; by the name of the variant.
        head: Arguments on the CLIP of two blocks of `small_models.py`.
        run: Beside those of `small`, in runs over several processes; `None` where no such run is made.
        trains: Whether it has something to train. If so the tests of `small` and `run` are made with it.
        bounded: Whether scores and maps are in [0, 1], as probabilities and distances are.
        map_terms: Whether its loss looks at the map, where it trains.
        at_once: Whether a test step only queues work on the device, and waits for no value.
    """

    small: Arguments
    head: Arguments
    tiny: dict[str, Arguments] = field(default_factory=dict)
    run: Arguments | None = None
    trains: bool = True
    bounded: bool = True
    map_terms: bool = True
    at_once: bool = True


ANOMALYCLIP: Arguments = {"vv_from": 3, "prompt_depth": 4, "layers": (8,)}
FAPROMPT: Arguments = {"vv_from": 3, "prompt_depth": 4, "layer": 8}
AACLIP: Arguments = {"layers": (2, 4, 6, 8), "text_epochs": 0, "image_adapters": 3, "vv_from": 3}
ADACLIP: Arguments = {"layers": (2, 4, 6, 8)}
ADAPTCLIP: Arguments = {"layers": (3, 5, 6, 8), "vv_from": 3, "width": 16}
KANOCLIP: Arguments = {"layers": (3, 5, 6, 8), "vv_from": 3, "knowledge": KNOWLEDGE}
CASES = {
    "AFCLIP": Case(
        small={"layers": [1, 3], "scales": [1, 3]},
        tiny={"AF-CLIP": {"layers": (2, 4, 6, 8)}},
        run={},
        head={"layers": [1, 2], "adapter_heads": 1},
    ),
    "AnomalyCLIP": Case(
        small={"layers": [2, 3], "vv_from": 2, "prompt_depth": 2},
        tiny={
            "AnomalyCLIP": ANOMALYCLIP,
            "AnomalyCLIP, four layers": {**ANOMALYCLIP, "layers": (3, 5, 6, 8)},
            "AnomalyCLIP Ensemble": {**ANOMALYCLIP, "ensemble": 2},
            "AnomalyCLIP Ensemble*": {**ANOMALYCLIP, "n_abnormal_prompts": 3},
        },
        run={"n_abnormal_prompts": 2},
        head={"layers": [2], "vv_from": 1, "prompt_depth": 2},
    ),
    "GlocalCLIP": Case(
        small={"layers": [2, 3], "vv_from": 2, "prompt_depth": 2},
        tiny={
            "GlocalCLIP": ANOMALYCLIP,
            "GlocalCLIP, four layers and a margin": {**ANOMALYCLIP, "layers": (3, 5, 6, 8), "contrastive_margin": 1.0},
            "GlocalCLIP without deep tokens": {**ANOMALYCLIP, "prompt_depth": 1},
        },
        run={"contrastive_margin": 1.5},
        head={"layers": [2], "vv_from": 1, "prompt_depth": 2},
    ),
    "FAPrompt": Case(
        small={"layer": 3, "vv_from": 2, "prompt_depth": 2, "n_prior_patches": 2},
        tiny={
            "FAPrompt": FAPROMPT,
            "FAPrompt as released": {**FAPROMPT, "prior_patches": "first_k", "image_ce_weight": 1.0},
            "FAPrompt, image token": {**FAPROMPT, "prior_patches": "image_token"},
            "FAPrompt without DAP": {**FAPROMPT, "dap": False},
            "FAPrompt without CAP": {**FAPROMPT, "n_abnormal_prompts": 1},
            "FAPrompt without deep tokens": {**FAPROMPT, "prompt_depth": 1},
            "FAPrompt, best match": {**FAPROMPT, "aggregation": "best_match"},
            "FAPrompt, weighted": {**FAPROMPT, "aggregation": "weighted"},
        },
        run={"n_prior_patches": 3, "n_abnormal_prompts": 2, "image_ce_weight": 1.0},
        head={"layer": 2, "vv_from": 1, "prompt_depth": 2, "n_prior_patches": 2},
    ),
    "CoOp": Case(
        small={"prompt_tokens": 4},
        tiny={"CoOp": {}, "CoOp, V-V path": {"vv_from": 3, "map_sigma": 4.0}},
        run={"warmup_lr": 1e-3},
        head={},
        map_terms=False,
    ),
    "CoCoOp": Case(
        small={"start": ""},
        tiny={"CoCoOp": {}, "CoCoOp, random start": {"start": "", "prompt_tokens": 3, "vv_from": 3}},
        run={"warmup_lr": 1e-3},
        head={},
        map_terms=False,
    ),
    "APRILGAN": Case(
        small={"layers": [1, 3]},
        tiny={"APRIL-GAN": {"layers": (2, 4, 6, 8)}},
        run={"temperature": 0.07},
        head={"layers": [1, 2]},
    ),
    "AdaCLIP": Case(
        small={"layers": [1, 3], "prompt_depth": 2, "clusters": 2},
        tiny={
            "AdaCLIP": ADACLIP,
            "AdaCLIP as released": {
                **ADACLIP,
                "fusion": "top_patches",
                "clusters": 4,
                "half_prompts": True,
                "dice_of_rows": True,
            },
            "AdaCLIP, static visual prompts": {
                **ADACLIP,
                "dynamic_prompts": False,
                "text_prompts": False,
                "fusion": "none",
            },
            "AdaCLIP, dynamic text prompts": {**ADACLIP, "static_prompts": False, "visual_prompts": False},
        },
        run={},
        head={"layers": [1, 2], "prompt_depth": 2, "clusters": 3},
    ),
    "AACLIP": Case(  # its visual stage alone; of both its own tests and the runs over processes tell
        small={"layers": [1, 3], "text_epochs": 1, "text_adapters": 1, "image_adapters": 2, "vv_from": 2},
        tiny={
            "AA-CLIP": AACLIP,
            "AA-CLIP as released": {**AACLIP, "text_stage": "code", "map_fusion": "maps", "image_score": "map"},
        },
        run={},
        head={"layers": [1, 2], "text_epochs": 1, "text_adapters": 1, "image_adapters": 1, "vv_from": 1},
        bounded=False,  # the map is of logits
    ),
    "AdaptCLIP": Case(
        small={"layers": [2, 3], "vv_from": 2, "width": 8},
        tiny={
            "AdaptCLIP": ADAPTCLIP,
            "AdaptCLIP without context": {**ADAPTCLIP, "context": False},
        },
        run={"prompt_tokens": 4},
        head={"layers": [1, 2], "vv_from": 1, "width": 4},
    ),
    "KAnoCLIP": Case(
        small={"layers": [2, 3], "vv_from": 2, "knowledge": KNOWLEDGE},
        tiny={
            "KAnoCLIP": KANOCLIP,
            "KAnoCLIP without KnPL": {**KANOCLIP, "learnable_prompts": False},
            "KAnoCLIP without CLIP-VV": {**KANOCLIP, "vv_from": None},
            "KAnoCLIP without Bi-CMCI": {**KANOCLIP, "interaction": False},
            "KAnoCLIP without Conv-Adapter": {**KANOCLIP, "conv_adapter": None},
            "KAnoCLIP, Eq. (11) as printed": {**KANOCLIP, "conv_adapter": "global", "adapter_residual": False},
        },
        run={"interaction_width": 8, "interaction_heads": 2, "offset_groups": 2, "offset_stride": 1}
        | {"adapter_bottleneck": 4, "knowledge_margin": 0.5},
        head={"layers": [1, 2], "vv_from": 1, "interaction_width": 32, "knowledge_weight": 0},
    ),
    "UniADet": Case(
        small={"layers": [1, 3]},
        tiny={
            "UniADet": {"layers": (2, 4, 6, 8)},
            "UniADet, patches": {"layers": (2, 4, 6, 8), "image_score": "patches"},
        },
        run={"map_sigma": 0.0},
        head={"layers": [1, 2]},
    ),
    "MRAD": Case(
        small={"layer": 3},
        tiny={
            "MRAD-FT": {"layer": 8},
            "MRAD-FT, nearest keys": {"layer": 8, "neighbours": 5},
        },
        run={"memory_size": 8},
        head={"layer": 2, "vv_from": 1},
    ),
    "PatchLogit": Case(
        small={"layers": [1, 3]},
        tiny={"Patch logit": {"layers": (2, 4, 6, 8)}},
        run={},
        head={"layers": [1, 2]},
    ),
    "CLIP": Case(small={}, tiny={"CLIP": {}}, head={}, trains=False),
    "WinCLIP": Case(
        small={"window_sizes": [1, 2]},
        tiny={"WinCLIP": {"window_sizes": (12,)}, "WinCLIP+": {"window_sizes": (12,), "k_shot": 2}},
        head={"window_sizes": [2]},
        trains=False,
    ),
    "AnoVL": Case(  # trains on each image while it is tested
        small={"steps": 2},
        tiny={"AnoVL": {"augment": False, "steps": 2}},
        head={},
        trains=False,
        at_once=False,
    ),
    "NearestNeighbours": Case(  # it rejects images without a memory
        small={"layers": [1, 3], "k_shot": 2},
        tiny={"Nearest neighbours": {"layers": (2, 4, 6, 8), "k_shot": 2}},
        head={"layers": [1, 2]},
        trains=False,
        at_once=False,
    ),
    "HeadWithMemory": Case(
        small={"layers": [1, 3], "k_shot": 2},
        tiny={
            "Memory alone": {"layers": (2, 4, 6, 8), "k_shot": 2},
            "Patch rarity with memory": {
                "layers": (2, 8),
                "k_shot": 2,
                "head": "PatchRarity",
                "head_arguments": {"layers": [4, 6]},
            },
        },
        head={"layers": [1, 2]},
        bounded=False,  # standard deviations
        trains=False,
        at_once=False,
    ),
    "AnomalyDINO": Case(
        small={"k_shot": 2, "rotations": 4},
        tiny={"AnomalyDINO": {"k_shot": 2, "rotations": 4, "masked": ["a"], "mask_threshold": 4.0}},
        head={"rotations": 4},
        bounded=False,  # 1 less a cosine
        trains=False,
        at_once=False,
    ),
    "SubspaceAD": Case(
        small={"layers": [1, 3], "k_shot": 2, "rotations": 1},
        tiny={"SubspaceAD": {"layers": (4, 6), "k_shot": 2, "rotations": 1}},
        head={"layers": [1, 2], "rotations": 1},
        bounded=False,  # squared distances
        trains=False,
        at_once=False,
    ),
    "Fusion": Case(  # of heads that train nothing; its statistics are kept, which its own tests look at
        small={"heads": [{"method": "PatchRarity", "arguments": {"layers": [n]}} for n in (1, 3)]},
        run={},
        head={"heads": [{"method": "PatchRarity", "arguments": {"layers": [n]}} for n in (1, 2)]},
        bounded=False,
        trains=False,
    ),
    "PatchRarity": Case(
        small={"layers": [1, 3]},
        tiny={"Patch rarity": {"layers": (2, 4, 6, 8)}},
        head={"layers": [1, 2]},
        trains=False,
    ),
    # Those below compare test images with each other: their own tests say what may depend on what.
    "DualImageCLIP": Case(small={"steps": 0}, run={}, head={}, trains=False),
    "MuSc": Case(small={"layers": [1, 3]}, head={"layers": [1, 2]}, trains=False, at_once=False),
    "MuSc2": Case(small={"layers": [1, 3]}, head={"layers": [1, 2]}, trains=False, at_once=False),
}
TRAINED = [name for name, case in CASES.items() if case.trains]
KEPT = [name for name in TRAINED if not methods()[name].needs_pixels]  # whose features a store keeps
AT_ONCE = [name for name, case in CASES.items() if case.at_once]
IN_RUNS = [name for name, case in CASES.items() if case.run is not None]


def variants(trains: bool) -> dict[str, tuple[type[AnomalyMethod], Arguments]]:
    """Returns classes and arguments on the package's own CLIP, by the name of the variant."""
    found = ((name, case) for name, case in CASES.items() if case.trains == trains)
    return {variant: (methods()[name], given) for name, case in found for variant, given in case.tiny.items()}


def run_arguments(name: str) -> Arguments:
    """Returns the arguments of a method in runs on the CLIP of three blocks."""
    return CASES[name].small | (CASES[name].run or {})


def command_line(name: str) -> Iterator[tuple[str, str]]:
    """Yields options of a shipped config that fit the method to the CLIP of three blocks, as `arguments` takes them."""
    for key, value in run_arguments(name).items():
        if key != "knowledge":  # the config's own is of the datasets that the miniature trees are named after
            yield f"model__{key}", str(value)
