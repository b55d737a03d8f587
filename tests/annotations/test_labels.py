"""Meanings of labels: normal, anomalous, ignored."""

import pytest

from afclip_lightning.annotations.labels import Judged, Labels, judge
from afclip_lightning.annotations.shapes import Annotated, Shape

BY_NAME = Labels()
GIVEN = Labels(frozenset({"fine A"}), frozenset({"product"}))


def image(*labels: str, tags: tuple[str, ...] = (), finished: bool | None = None) -> Annotated:
    shapes = tuple(Shape("box", (label,) if label else ()) for label in labels)
    return Annotated("x", ("a.png",), shapes=shapes, tags=tags, finished=finished)


@pytest.mark.parametrize(
    ("labels", "drawn", "wanted"),
    [
        (BY_NAME, image("crack"), (1, "crack")),
        (BY_NAME, image(""), (1, "")),  # somebody drew it
        (BY_NAME, image("hole", "crack", tags=("dent",)), (1, "crack+dent+hole")),
        (BY_NAME, image(tags=("scratch",)), (1, "scratch")),
        (BY_NAME, image(tags=("OK",)), (0, "")),
        (BY_NAME, image("good"), (0, "")),
        (BY_NAME, image("good", "crack"), (1, "crack")),
        (BY_NAME, image(), (None, "")),
        (BY_NAME, image(finished=True), (0, "")),
        (BY_NAME, image(finished=False), (None, "")),
        (GIVEN, image(tags=("OK",)), (1, "OK")),  # what is given replaces the names
        (GIVEN, image(tags=("fine A",)), (0, "")),
        (GIVEN, image("product"), (None, "")),  # an outline of the product says nothing
        (GIVEN, image("product", "crack"), (1, "crack")),
        (GIVEN, image("product", finished=True), (0, "")),
    ],
)
def test_judgements(labels: Labels, drawn: Annotated, wanted: tuple[int | None, str]) -> None:
    judged = judge(drawn, labels)
    assert (judged.label, judged.defect_type) == wanted
    assert judged.contradicts == ""


def test_a_tag_may_contradict_a_shape() -> None:
    assert judge(image("crack", tags=("good",)), BY_NAME).contradicts == "good"
    assert judge(image(tags=("good", "crack")), BY_NAME).contradicts == "good"


def test_a_shape_with_several_labels_is_a_defect_if_one_is() -> None:
    shape = Shape("box", ("product", "crack"))
    judged = judge(Annotated("x", ("a",), shapes=(shape,)), GIVEN)
    assert judged == Judged(1, (shape,), "crack")
    assert GIVEN.meaning(("product", "fine A")) == "normal"


def test_forms_of_letters_do_not_matter() -> None:
    labels = Labels(frozenset({"gepr\u00fcft"}))
    assert judge(image(tags=("gepru\u0308ft",)), labels).label == 0
