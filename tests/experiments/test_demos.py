"""The configs that the demos are measured with exist, and every override of the two methods is among them."""

from pathlib import Path

from experiments.demos import ABLATION, MAIN

CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_override_is_measured() -> None:
    used = {config for tables in (MAIN, ABLATION) for table in tables.values() for c in table.values() for config in c}
    for config in used:
        assert (CONFIGS / f"{config}.yaml").is_file(), config
    overrides = {f"ablation/{path.stem}" for path in CONFIGS.glob("ablation/*.yaml")}
    assert {name for name in overrides if not name.startswith("ablation/afclip")} <= used
