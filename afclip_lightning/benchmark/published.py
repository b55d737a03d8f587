"""The published numbers of the papers' tables."""

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
# Numbers are published for VIT_L, and for these methods also for VIT_B, in some or all papers.
ON_VIT_B = {
    *("CLIP", "CLIP-AC", "WinCLIP", "WinCLIP+", "AnoVL", "MuSc-2"),
    *("Dual-Image", "Dual-Image+", "reference image + TTA"),
}
DEFAULT = Path("experiments/published")  # the project's
REMEDY = f"`published` names the folder; {DEFAULT} is the project's."
MEDICAL = ("brainmri", "headct", "lag", "br35h", "colondb", "clinicdb", "kvasir", "endo", "isic", "tn3k")


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        table: The table of the paper, like `AF-CLIP, Table 1`.
        label: The method, or its variant in an ablation.
        dataset: Test set, or `industrial` or `medical` for FAPrompt's means over several.
        shots: Normal images per category, or `full`.
        metric: Like `image_auroc`.
        text: The number as printed, in percent, with its deviation.
        value: The number, in percent.
    """

    table: str
    label: str
    dataset: str
    shots: str
    metric: str
    text: str
    value: float


def load_published(folder: Path | None) -> list[Published]:
    """Returns the published means over categories, in the order of the files.

    Args:
        folder: The folder. `None` for the default one; if it does not exist, there are no published numbers.

    Raises:
        UserError: A file cannot be read. The message names the file and the line.
    """
    if folder is None:
        return load_published(DEFAULT) if DEFAULT.is_dir() else []
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. {REMEDY}")
    return [row for name in (*PAPERS, ABLATIONS) for row in _rows(folder / f"{name}.csv")]


def check_names(matrix: Matrix, published: list[Published]) -> None:
    """Checks that the papers contain every name that a method claims to have there, if there are published numbers.

    Raises:
        UserError: A name is not in the papers. The message names the nearest one that is.
    """
    if not published:
        return
    labels = {row.label for row in published}
    for name, method in matrix.methods.items():
        for label in method.published or []:
            if label not in labels and label != name:
                nearest = difflib.get_close_matches(label, labels, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else f". There are: {', '.join(sorted(labels))}."
                raise UserError(f"methods.{name}.published: no paper prints {label!r}{hint}")


def architecture(backbone: str) -> str:
    """Returns the architecture in a backbone's description, followed by `random` for random weights.

    The text is empty for a description of another form.
    """
    found = re.match(r"(\S+) \((.*), [0-9a-f]+\), ", backbone)
    return "" if found is None else f"{found[1]}, random" if "random" in found[2].lower() else found[1]


def comparable(backbone: str, labels: Collection[str]) -> bool:
    """Returns whether numbers on a backbone can be compared with the published ones of a method.

    Args:
        backbone: Description of the backbone. One of unknown form counts as the papers' backbone.
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
            raise UserError(f"{path}, line {number}: is not a published number ({error!r}). {REMEDY}") from error


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
