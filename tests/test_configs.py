"""Overrides merged over a main config give different variants of its method."""

import contextlib
import io
from functools import cache
from typing import Any

import pytest
import yaml

from afclip_lightning.engine.app import main
from tests.support import REPOSITORY
from tests.support.golden_case import RELEASED

CONFIGS = REPOSITORY / "configs"
OVERRIDES = sorted(
    f"{path.parent.name}/{path.stem}" for kind in ("ablation", "official") for path in CONFIGS.glob(f"{kind}/*")
)


@cache
def arguments_of(*configs: str) -> dict[str, Any]:
    """Returns the constructor arguments of the model that these configs, merged in order, give."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main(["fit", *(f"--config={CONFIGS / config}.yaml" for config in configs), "--print_config"])
    arguments: dict[str, Any] = yaml.safe_load(printed.getvalue())["model"]["init_args"]
    return arguments


def base_of(override: str) -> str:
    """Returns the config that an override is for: its name begins with the method."""
    return f"{override.partition('/')[2].partition('_')[0]}_mvtec"


@pytest.mark.slow
@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_changes_the_method_and_not_its_training(override: str) -> None:
    base, changed = arguments_of(base_of(override)), arguments_of(base_of(override), override)
    assert changed.keys() == base.keys()
    assert changed != base
    for argument in ("backbone", "optimizer"):
        assert changed[argument] == base[argument]


@pytest.mark.slow
def test_no_two_overrides_are_the_same() -> None:
    seen: list[tuple[str, dict[str, Any]]] = []
    for override in OVERRIDES:
        variant = (base_of(override), arguments_of(base_of(override), override))
        assert variant not in seen, override
        seen.append(variant)


@pytest.mark.slow
def test_the_released_faprompt_is_the_one_whose_numbers_are_recorded() -> None:
    arguments = arguments_of("faprompt_mvtec", "official/faprompt")
    assert {name: arguments[name] for name in RELEASED} == RELEASED
