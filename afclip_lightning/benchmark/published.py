"""The published numbers, as the tables of the papers that they come from."""

import difflib
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from afclip_lightning.benchmark.matrix import Matrix
from afclip_runtime.errors import UserError
from afclip_runtime.files import read_rows

PAPERS = ("afclip", "faprompt", "dual_image", "kanoclip")
ABLATIONS = "ablations"
VIT_L, VIT_B = "ViT-L-14-336", "ViT-B-16-plus-240"
# Numbers are printed for VIT_L, and of these methods for VIT_B in some papers or in all
ON_VIT_B = {
    *("CLIP", "CLIP-AC", "WinCLIP", "WinCLIP+", "AnoVL", "MuSc-2"),
    *("Dual-Image", "Dual-Image+", "reference image + TTA"),
}
REMEDY = "`published` names the folder; experiments/published is the project's."
MEDICAL = ("brainmri", "headct", "lag", "br35h", "colondb", "clinicdb", "kvasir", "endo", "isic", "tn3k")


@dataclass(frozen=True)
class Published:
    """One printed number.

    Attributes:
        table: Where it is printed, like `AF-CLIP, Table 1`.
        label: The method, or its variant in an ablation.
        dataset: Test set, or `industrial` or `medical` for FAPrompt's means over several.
        shots: Normal images per category, or `full`.
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
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. {REMEDY}")
    return [row for name in (*PAPERS, ABLATIONS) for row in _rows(folder / f"{name}.csv")]


def check_names(matrix: Matrix, published: list[Published]) -> None:
    """Checks that every name that a method says it has in the papers is one.

    Raises:
        UserError: One is not; the message names the nearest that is.
    """
    labels = {row.label for row in published}
    for name, method in matrix.methods.items():
        for label in method.published or []:
            if label not in labels and label != name:
                nearest = difflib.get_close_matches(label, labels, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else f". There are: {', '.join(sorted(labels))}."
                raise UserError(f"methods.{name}.published: no paper prints {label!r}{hint}")


def architecture(backbone: str) -> str:
    """Returns the architecture's name at the begin of a backbone's description, which says `random` of random weights.

    Of a description of another form, nothing is known: the text is empty.
    """
    found = re.match(r"(\S+) \((.*), [0-9a-f]+\), ", backbone)
    return "" if found is None else f"{found[1]}, random" if "random" in found[2].lower() else found[1]


def comparable(backbone: str, labels: Collection[str]) -> bool:
    """Returns whether numbers on a backbone can be set beside the printed ones of a method.

    Args:
        backbone: Description of what was measured on; one that is not understood is taken for the papers'.
        labels: The method's names in the published numbers.
    """
    return architecture(backbone).removesuffix("-quickgelu") in (
        "",
        VIT_L,
        *((VIT_B,) if ON_VIT_B & set(labels) else ()),
    )


def members(published: list[Published], group: str, metric: str) -> tuple[str, ...]:
    """Returns the datasets that FAPrompt's ablations average over: those of its tables, without MVTec AD."""
    found = (p for p in published if p.label == "FAPrompt" and p.table in ("FAPrompt, Table 1", "FAPrompt, Table 2"))
    datasets = dict.fromkeys(p.dataset for p in found if p.metric == metric and p.dataset != "mvtec")
    return tuple(name for name in datasets if (name in MEDICAL) == (group == "medical"))


def _rows(path: Path) -> Iterator[Published]:
    for number, row in read_rows(path, remedy=REMEDY):
        try:
            if not row.get("category"):
                yield _published(row)
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}, line {number}: is no published number ({error!r}). {REMEDY}") from error


def _published(row: dict[str, str]) -> Published:
    if "variant" in row:
        table, label, shots = f"{row['paper']}, Table {row['table']}", row["variant"], "0"
    else:
        table, label, shots = row["source"].removesuffix(" (quoted)"), row["method"], row["shots"]
    text = f"{row['value']} ± {row['std']}" if row["std"] else row["value"]
    value = float(row["value"])
    if not math.isfinite(value):
        raise ValueError(row["value"])
    return Published(table, label, row["dataset"], shots, f"{row['level']}_{row['metric']}", text, value)
