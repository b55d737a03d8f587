"""What the labels of an annotated image mean: normal, anomalous and with which defects, or not known."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from afclip_lightning.annotations.shapes import Annotated, Shape
from afclip_lightning.data.names import means_normal, normal_form

Meaning = Literal["defect", "normal", "ignored"]


@dataclass(frozen=True)
class Labels:
    """What labels mean.

    Args:
        normal: Labels that say that an image is normal; `None` for those whose name says so (`good`, `OK`).
        ignored: Labels that say nothing: outlines of the product, notes.
    """

    normal: frozenset[str] | None = None
    ignored: frozenset[str] = frozenset()

    def meaning(self, labels: Collection[str]) -> Meaning:
        """Returns what a shape or a tag with these labels means: a defect, unless each of them says otherwise.

        What has no label at all is a defect: somebody drew it.
        """
        told = {self.of(label) for label in labels} - {"ignored"} if labels else {"defect"}
        return "defect" if "defect" in told else "normal" if told else "ignored"

    def of(self, label: str) -> Meaning:
        """Returns what a single label means."""
        if normal_form(label) in self.ignored:
            return "ignored"
        says_normal = means_normal(label) if self.normal is None else normal_form(label) in self.normal
        return "normal" if says_normal else "defect"

    def defect_types(self, labels: Collection[str]) -> list[str]:
        """Returns those of the labels that name a defect, sorted."""
        return sorted({normal_form(label) for label in labels if self.of(label) == "defect"})


@dataclass(frozen=True)
class Judged:
    """What an annotated image is.

    Attributes:
        label: 1 = anomalous, 0 = normal; `None` if nothing says so.
        defects: The shapes that mark defects.
        defect_type: Names of its defects, sorted, with `+` between; empty where it has none, or none with a name.
        contradicts: What says that it is normal although it has a defect; empty if nothing does.
    """

    label: int | None
    defects: tuple[Shape, ...] = ()
    defect_type: str = ""
    contradicts: str = ""


def judge(image: Annotated, labels: Labels) -> Judged:
    """Returns what an image is, by its shapes and tags.

    A defect makes it anomalous, whether drawn or only named by a tag. Without one it is normal if a shape or tag says
    so, or if the tool says that somebody looked at it and was done.
    """
    defects = tuple(shape for shape in image.shapes if labels.meaning(shape.labels) == "defect")
    tags = [tag for tag in image.tags if labels.meaning([tag]) == "defect"]
    names = labels.defect_types([*tags, *(label for shape in defects for label in shape.labels)])
    normal_tags = [tag for tag in image.tags if labels.meaning([tag]) == "normal"]
    if defects or tags:
        return Judged(1, defects, "+".join(names), normal_tags[0] if normal_tags else "")
    told = bool(normal_tags) or any(labels.meaning(shape.labels) == "normal" for shape in image.shapes)
    return Judged(0 if told or image.finished else None)
