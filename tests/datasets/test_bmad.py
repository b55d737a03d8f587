"""BMAD: images and masks in separate folders, and an unused split."""

from pathlib import Path

import pytest

from afclip_lightning.datasets.bmad import BMAD
from tests.support.layouts import write_image
from tests.support.layouts.bmad import write_bmad


def test_valid_is_not_used_and_masks_of_normal_images_are_not_read(tmp_path: Path) -> None:
    samples = BMAD("brain", write_bmad(tmp_path)).samples("test")
    assert not [s for s in samples if "valid" in s.image_path.parts]
    assert [s.mask_path for s in samples if s.label == 0] == [None]
    assert {s.mask_path.parent.name for s in samples if s.mask_path} == {"label"}


def test_training_images_in_img(tmp_path: Path) -> None:
    root = write_bmad(tmp_path)
    write_image(root / "train/good/img/9.png")
    assert [s.image_path.name for s in BMAD("brain", root).samples("train")] == ["9.png"]


def test_names_counts_and_class_names() -> None:
    resc = BMAD("resc", "nowhere", class_names={"retina": "eye"})
    assert (resc.name, resc.published_counts) == ("bmad_resc", {"retina": (4297, 1041, 764)})
    assert resc.class_name_of("retina") == "eye"
    assert BMAD("liver", "nowhere").class_name_of("liver") == "liver CT"
    with pytest.raises(ValueError, match="got 'kidney'"):
        BMAD("kidney", "nowhere")  # type: ignore[arg-type]
