"""The common form of all exports: shapes with labels, images with shapes."""

from dataclasses import dataclass, field

from afclip_runtime.images.shapes import Area


@dataclass(frozen=True, eq=False)
class Shape:
    """A shape that somebody drew on an image.

    Attributes:
        kind: Name of the kind in the tool, for counts and messages (`polygon`).
        labels: Labels of the shape, if any.
        area: Marked area; `None` for a kind without area.
    """

    kind: str
    labels: tuple[str, ...] = ()
    area: Area | None = None


@dataclass(frozen=True, eq=False)
class Annotated:
    """An image as an export describes it.

    Attributes:
        where: Place in the export, the beginning of a message.
        names: Paths of the image in the export, the likeliest first.
        size: Width and height of the annotated image, in pixels; `None` if the export does not state it.
        shapes: Shapes on the image.
        tags: Labels of the whole image.
        finished: Whether the annotation of the image is finished; `None` if the tool does not say.
        project: Project, task or dataset of the image in the tool, if stated.
        subset: Split of the image in the tool, if any.
        problem: Problem of one of its shapes; empty if there is none.
    """

    where: str
    names: tuple[str, ...]
    size: tuple[int, int] | None = None
    shapes: tuple[Shape, ...] = ()
    tags: tuple[str, ...] = ()
    finished: bool | None = None
    project: str = ""
    subset: str = ""
    problem: str = ""


@dataclass
class Export:
    """The export of a tool.

    Attributes:
        images: Images of the export.
        remarks: Notes for the user on parts that were left out, one sentence each.
        unlisted: Whether images that it does not name count as images without a shape, as for a tool that writes one
            file per image. Otherwise they do not belong to it.
        nothing: Number of elements without a meaning for defects, by kind: texts, ratings, relations.
        labels: Labels of the project, used or not; none if the tool does not list them.
    """

    images: list[Annotated] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unlisted: bool = False
    nothing: dict[str, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
