"""What annotation tools export, in one form: shapes with labels, images with shapes."""

from dataclasses import dataclass, field

from afclip_runtime.images.shapes import Area


@dataclass(frozen=True, eq=False)
class Shape:
    """Something that somebody drew on an image.

    Attributes:
        kind: What the tool calls it, for counts and messages (`polygon`).
        labels: What it is labelled as; none where the tool has none.
        area: What it marks; `None` of a kind that has no area.
    """

    kind: str
    labels: tuple[str, ...] = ()
    area: Area | None = None


@dataclass(frozen=True, eq=False)
class Annotated:
    """An image as an export describes it.

    Attributes:
        where: Place in the export, as a message begins.
        names: Paths of the image as the export has them, the likeliest first.
        size: Width and height that the shapes were drawn on, in pixels; `None` where the export does not say.
        shapes: What was drawn.
        tags: Labels of the whole image.
        finished: Whether somebody looked at it and was done; `None` where the tool does not say.
        project: What the tool keeps it in (a project, a task, a dataset), where it says.
        subset: Its split in the tool, where there is one.
        problem: What is wrong with a shape of it; empty if nothing is.
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
    """What a tool exported.

    Attributes:
        images: Its images.
        remarks: Sentences on what was left out of it, for the user.
        unlisted: Whether images that it does not name are ones without a shape, as of a tool that writes a file per
            image; else they are no part of it.
        nothing: Kinds of things that say nothing of defects, with their numbers: texts, ratings, relations.
        labels: Labels that could be given, whether or not something bears them; none where the tool does not say.
    """

    images: list[Annotated] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unlisted: bool = False
    nothing: dict[str, int] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
