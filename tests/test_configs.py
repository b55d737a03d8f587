"""The ablation overrides, merged over the main config, give the variants of the paper's table."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from afclip_lightning.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"
LAYERS = [6, 12, 18, 24]


@pytest.mark.parametrize(("override", "expected"), [
    ("afclip_base", {"learnable_prompt": False, "adapter": False, "layers": [24], "scales": [1]}),
    ("afclip_v1", {"learnable_prompt": True, "adapter": False, "layers": [24], "scales": [1]}),
    ("afclip_v2", {"learnable_prompt": True, "adapter": True, "layers": [24], "scales": [1]}),
    ("afclip_v3", {"learnable_prompt": True, "adapter": True, "layers": LAYERS, "scales": [1]}),
    ("afclip_without_alignment", {"layers": LAYERS, "scales": [1, 3, 5], "alignment_loss_weight": 0.0}),
])  # fmt: skip
def test_ablation_overrides(override: str, expected: dict[str, Any]) -> None:
    printed = io.StringIO()
    configs = [f"--config={CONFIGS / 'afclip_mvtec.yaml'}", f"--config={CONFIGS / f'ablation/{override}.yaml'}"]
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main(["fit", *configs, "--print_config"])
    arguments = yaml.safe_load(printed.getvalue())["model"]["init_args"]
    assert {key: arguments[key] for key in expected} == expected
    assert arguments["optimizer"]["init_args"]["betas"] == [0.5, 0.999]


def test_every_ablation_override_is_tested() -> None:
    assert len(list((CONFIGS / "ablation").glob("*.yaml"))) == 5
