"""The table of presets in docs/backbones.md, from the presets and the measurements of `cost.py`.

python -m experiments.backbones.table    # writes it into the page
"""

from collections.abc import Mapping
from pathlib import Path

from afclip_lightning.backbones.presets import PRESETS, Preset
from afclip_runtime.files import write_text
from experiments.backbones.cost import read
from experiments.pages import with_part

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
HEAD = "| preset | model, weights | text | licence | download | native | input | taps | GFLOPs | cost |"
RULE = "|---|---|---|---|---:|---:|---:|---|---:|---:|"


def row(preset: Preset, cost: Mapping[str, str]) -> str:
    """Returns the preset's row. Unstated and unmeasured values are marked as such."""
    vision_only = preset.model.startswith("timm:")
    weights = (
        [preset.weights.removeprefix("timm:")]
        if vision_only
        else [preset.model, preset.vision_weights or preset.weights]
    )
    cells = [
        f"`{preset.name}`",
        ", ".join(weights),
        "yes" if preset.has_text else "",
        preset.licence or "not stated",
        preset.size.replace(", counted: float32", ""),
        str(preset.native_size),
        str(preset.image_size),
        ", ".join(map(str, preset.layers)),
        f"{float(cost['gflops']):,.0f}" if cost.get("gflops") else "",
        cost.get("ratio") or "",
    ]
    return f"| {' | '.join(cells)} |"


def render() -> str:
    """Returns the table as Markdown."""
    costs = read()
    return "\n".join([HEAD, RULE, *(row(preset, costs.get(preset.model, {})) for preset in PRESETS.values())]) + "\n"


def in_page(page: str) -> str:
    """Returns the page with the table in its place."""
    return with_part(page, "presets", "experiments/backbones/table.py", render())


if __name__ == "__main__":
    write_text(PAGE, in_page(PAGE.read_text(encoding="utf-8")))
