"""Anomaly maps in every type, and files that only claim to be maps."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from afclip_runtime.errors import DatasetError
from afclip_runtime.images.maps import read_map, write_map

MAP = np.random.default_rng(0).random((6, 9))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "uint16", "int32", "int64", "uint32"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_maps_are_read_in_the_type_that_they_were_saved_in(dtype: str, compression: str | None, tmp_path: Path) -> None:
    values = (MAP if dtype.startswith("float") else MAP * 250).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tiff", values, compression=compression)
    np.save(tmp_path / "a.npy", values[None])
    for name in ("a.tiff", "a.npy"):
        found = read_map(tmp_path / name)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def test_maps_are_turned_by_their_own_tag(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", MAP, extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read_map(tmp_path / "a.tiff"), np.rot90(MAP, -1))


def test_scaled_maps_come_back(tmp_path: Path) -> None:
    write_map(tmp_path / "a.png", MAP)
    np.testing.assert_allclose(read_map(tmp_path / "a.png"), MAP, atol=1e-5)


def header(text: str) -> bytes:
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


UNREAD = "cannot be read as an array"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (7071067, 7071067), }\n"), UNREAD),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }\n"), UNREAD),
        (header("(" * 5000), UNREAD),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 4), }\n"), "pixels|cannot be read"),
        (b"PK\3\4 whatever", r"it is an archive, \.npz"),
        (b"", "it is not a NumPy file"),
        (b"words", "it is not a NumPy file"),
    ],
    ids=["400 TB", "objects", "deep", "empty", "npz", "nothing", "text"],
)  # fmt: skip
def test_arrays_that_are_none_are_one_error(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DatasetError, match=f"a.npy: .*({message})"):
        read_map(tmp_path / "a.npy")


def test_pictures_of_maps_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4)))
    for name, message in (("a.png", r"is a colour image \(RGB\)"), ("a.npy", "expected numbers")):
        with pytest.raises(DatasetError, match=message):
            read_map(tmp_path / name)
