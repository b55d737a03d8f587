"""Several masks of one image, as one."""

from pathlib import Path

import numpy as np
import pytest

from afclip_lightning.data.images import read_mask, read_mask_of
from afclip_runtime.errors import DatasetError
from afclip_runtime.files.png import write_png


def test_a_folder_of_masks_marks_what_any_marks(tmp_path: Path) -> None:
    first, second = np.eye(4, 6, dtype=bool), np.eye(4, 6, 2, dtype=bool)
    write_png(tmp_path / "masks/0.png", first)
    write_png(tmp_path / "masks/1.png", second)
    write_png(tmp_path / "image.png", np.zeros((4, 6), np.uint8))
    assert read_mask(tmp_path / "masks").tolist() == (first | second).tolist()
    found, turn = read_mask_of(tmp_path / "image.png", tmp_path / "masks")
    assert (found.tolist(), turn) == ((first | second).tolist(), 1)


def test_masks_of_two_sizes_name_the_file(tmp_path: Path) -> None:
    write_png(tmp_path / "0.png", np.ones((4, 6), bool))
    write_png(tmp_path / "1.png", np.ones((4, 5), bool))
    with pytest.raises(DatasetError, match=r"1\.png: the mask has another size than 0\.png beside it"):
        read_mask(tmp_path)
