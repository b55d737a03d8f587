"""Overrides merged over a main config give the variants of the papers' tables, and the released codes' choices."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from afclip_lightning.engine.app import main
from tests.support.golden_case import RELEASED

CONFIGS = Path(__file__).parent.parent / "configs"
LAYERS = [6, 12, 18, 24]
OVERRIDES: dict[str, dict[str, Any]] = {  # each over the config of the method that its name begins with
    "ablation/afclip_base": {"learnable_prompt": False, "adapter": False, "layers": [24], "scales": [1]},
    "ablation/afclip_v1": {"learnable_prompt": True, "adapter": False, "layers": [24], "scales": [1]},
    "ablation/afclip_v2": {"learnable_prompt": True, "adapter": True, "layers": [24], "scales": [1]},
    "ablation/afclip_v3": {"learnable_prompt": True, "adapter": True, "layers": LAYERS, "scales": [1]},
    "ablation/afclip_without_alignment": {"layers": LAYERS, "scales": [1, 3, 5], "alignment_loss_weight": 0.0},
    "ablation/faprompt_cap": {"dap": False, "cap_orthogonal": True, "n_abnormal_prompts": 10},
    "ablation/faprompt_cap_without_orthogonality": {"dap": False, "cap_orthogonal": False, "n_abnormal_prompts": 10},
    "ablation/faprompt_dap": {"dap": True, "prior_loss": True, "n_abnormal_prompts": 1, "prior_patches": "topk"},
    "ablation/faprompt_dap_without_prior_loss": {"dap": True, "prior_loss": False, "n_abnormal_prompts": 1},
    "ablation/faprompt_image_prior_cocoop": {
        "prior_patches": "image_token",
        "prior_loss": False,
        "n_abnormal_prompts": 1,
    },
    "ablation/faprompt_image_prior_loss": {
        "prior_patches": "image_token",
        "prior_loss": True,
        "n_abnormal_prompts": 1,
    },
    "ablation/faprompt_image_prior": {"prior_patches": "image_token", "prior_loss": True, "n_abnormal_prompts": 10},
    "ablation/faprompt_best_match": {"aggregation": "best_match", "dap": True},
    "ablation/faprompt_weighted": {"aggregation": "weighted", "dap": True},
    "ablation/anomalyclip_ensemble": {"ensemble": 10, "n_abnormal_prompts": 1},
    "ablation/anomalyclip_ensemble_star": {"ensemble": 1, "n_abnormal_prompts": 10, "orthogonal_weight": 0.1},
    "ablation/kanoclip_base": {
        "learnable_prompts": False,
        "vv_from": None,
        "interaction": False,
        "conv_adapter": None,
    },
    "ablation/kanoclip_knpl": {"learnable_prompts": True, "vv_from": None, "interaction": False, "conv_adapter": None},
    "ablation/kanoclip_knpl_vv": {"learnable_prompts": True, "vv_from": 6, "interaction": False, "conv_adapter": None},
    "ablation/kanoclip_without_conv_adapter": {"vv_from": 6, "interaction": True, "conv_adapter": None},
    "ablation/kanoclip_without_interaction": {"vv_from": 6, "interaction": False, "conv_adapter": "spatial"},
    "ablation/kanoclip_without_knpl": {"learnable_prompts": False, "interaction": True, "conv_adapter": "spatial"},
    "ablation/kanoclip_without_vv": {"learnable_prompts": True, "vv_from": None, "interaction": True},
    "official/anomalyclip": {"half_deep_tokens": True},
    "official/faprompt": RELEASED,
}


def arguments_of(*configs: str) -> dict[str, Any]:
    """Returns the constructor arguments of the model that these configs, merged in order, give."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main(["fit", *(f"--config={CONFIGS / config}.yaml" for config in configs), "--print_config"])
    arguments: dict[str, Any] = yaml.safe_load(printed.getvalue())["model"]["init_args"]
    return arguments


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides(override: str) -> None:
    method = Path(override).name.split("_")[0]
    arguments = arguments_of(f"{method}_mvtec", override)
    expected = OVERRIDES[override]
    assert {key: arguments[key] for key in expected} == expected
    assert arguments["optimizer"]["init_args"]["betas"] == [0.5, 0.999]


def test_every_override_is_tested() -> None:
    files = {
        f"{path.parent.name}/{path.stem}" for kind in ("ablation", "official") for path in CONFIGS.glob(f"{kind}/*")
    }
    assert files == set(OVERRIDES)
