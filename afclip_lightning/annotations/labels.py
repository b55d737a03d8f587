"""The meaning of the labels of an annotated image: normal, anomalous with defect types, or unknown."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from afclip_lightning.annotations.shapes import Annotated, Shape
from afclip_lightning.data.names import means_normal, normal_form

Meaning = Literal["defect", "normal", "ignored"]


@dataclass(frozen=True)
class Labels:
    """The meaning of labels.

    Args:
        normal: Labels that mean normal. `None` for the usual names (`good`, `OK`).
        ignored: Labels without a meaning for defects, such as outlines of the product or notes.
    """

    normal: frozenset[str] | None = None
    ignored: frozenset[str] = frozenset()

    def meaning(self, labels: Collection[str]) -> Meaning:
        """Returns the meaning of a shape or tag with these labels: a defect, unless each label means something else.

        A shape without a label is a defect, because somebody drew it.
        """
        told = {self.of(label) for label in labels} - {"ignored"} if labels else {"defect"}
        return "defect" if "defect" in told else "normal" if told else "ignored"

    def of(self, label: str) -> Meaning:
        """Returns the meaning of a single label."""
        if normal_form(label) in self.ignored:
            return "ignored"
        says_normal = means_normal(label) if self.normal is None else normal_form(label) in self.normal
        return "normal" if says_normal else "defect"

    def defect_types(self, labels: Collection[str]) -> list[str]:
        """Returns the labels that name a defect, sorted."""
        return sorted({normal_form(label) for label in labels if self.of(label) == "defect"})


@dataclass(frozen=True)
class Judged:
    """The verdict on an annotated image.

    Attributes:
        label: 1 = anomalous, 0 = normal; `None` if unknown.
        defects: Shapes that mark defects.
        defect_type: Names of the defects, sorted and joined by `+`; empty without a named defect.
        contradicts: Tag that says normal although the image has a defect; empty if there is none.
    """

    label: int | None
    defects: tuple[Shape, ...] = ()
    defect_type: str = ""
    contradicts: str = ""


def judge(image: Annotated, labels: Labels) -> Judged:
    """Returns the verdict on an image from its shapes and tags.

    A defect makes it anomalous, whether drawn or only named by a tag. Without a defect it is normal if a shape or tag
    says so, or if the tool says that its annotation is finished.
    """
    defects = tuple(shape for shape in image.shapes if labels.meaning(shape.labels) == "defect")
    tags = [tag for tag in image.tags if labels.meaning([tag]) == "defect"]
    names = labels.defect_types([*tags, *(label for shape in defects for label in shape.labels)])
    normal_tags = [tag for tag in image.tags if labels.meaning([tag]) == "normal"]
    if defects or tags:
        return Judged(1, defects, "+".join(names), normal_tags[0] if normal_tags else "")
    told = bool(normal_tags) or any(labels.meaning(shape.labels) == "normal" for shape in image.shapes)
    return Judged(0 if told or image.finished else None)
