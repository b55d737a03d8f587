"""The published numbers, as the tables of the papers that they come from."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from afclip_lightning.errors import UserError

PAPERS = ("afclip", "faprompt", "dual_image", "kanoclip")
ABLATIONS = "ablations"
MEDICAL = ("brainmri", "headct", "lag", "br35h", "colondb", "clinicdb", "kvasir", "endo", "isic", "tn3k")


@dataclass(frozen=True)
class Published:
    """One printed number.

    Attributes:
        table: Where it is printed, like `AF-CLIP, Table 1`.
        label: The method, or its variant in an ablation.
        dataset: Test set, or `industrial` or `medical` for FAPrompt's means over several.
        shots: Normal images a category, or `full`.
        metric: Like `image_auroc`.
        text: As printed, in percent, with its deviation.
        value: In percent.
    """

    table: str
    label: str
    dataset: str
    shots: str
    metric: str
    text: str
    value: float


def load_published(folder: Path) -> list[Published]:
    """Returns the means over categories that the papers print, in the order of the files.

    Raises:
        UserError: A file cannot be read; the message names it and the line.
    """
    return [row for name in (*PAPERS, ABLATIONS) for row in _rows(folder / f"{name}.csv")]


def members(published: list[Published], group: str, metric: str) -> tuple[str, ...]:
    """Returns the datasets that FAPrompt's ablations average over: those of its tables, without MVTec AD."""
    found = (p for p in published if p.label == "FAPrompt" and p.table in ("FAPrompt, Table 1", "FAPrompt, Table 2"))
    datasets = dict.fromkeys(p.dataset for p in found if p.metric == metric and p.dataset != "mvtec")
    return tuple(name for name in datasets if (name in MEDICAL) == (group == "medical"))


def _rows(path: Path) -> Iterator[Published]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    if not row.get("category"):
                        yield _published(row)
                except (KeyError, ValueError) as error:
                    raise UserError(f"{path}, line {number}: is no published number ({error!r}).") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). `published` names the folder.") from error


def _published(row: dict[str, str]) -> Published:
    if "variant" in row:
        table, label, shots = f"{row['paper']}, Table {row['table']}", row["variant"], "0"
    else:
        table, label, shots = row["source"].removesuffix(" (quoted)"), row["method"], row["shots"]
    text = f"{row['value']} ± {row['std']}" if row["std"] else row["value"]
    return Published(table, label, row["dataset"], shots, f"{row['level']}_{row['metric']}", text, float(row["value"]))
