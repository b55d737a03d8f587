"""Pictures that two sets share: found in any form of saving; different pictures are not reported."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from afclip_lightning.cli.datasets import main
from afclip_lightning.data import copies
from afclip_lightning.data.copies import Copy, near_copies, same_files, told
from afclip_lightning.data.picture_hash import CLOSE, close_pairs, hashes_of, reduced, structure
from afclip_lightning.datasets import procedural
from afclip_lightning.types import Sample

SIZE = 256


def picture(seed: int) -> np.ndarray:
    """Returns a picture with structure of all sizes, as photos have it, `[H, W, 3]`, uint8."""
    generator = np.random.default_rng(seed)
    layers = [
        cv2.resize(generator.normal(size=(n, n, 3)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        for n in (4, 8, 16, 32, 64)
    ]
    values = sum(layer * weight for layer, weight in zip(layers, (40, 25, 15, 10, 6), strict=True))
    return np.clip(values + 128, 0, 255).astype(np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def samples(folder: Path, dataset: str = "") -> list[Sample]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [Sample(dataset or folder.name, "x", "test", path, 0) for path in paths]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AFCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/picture_hashes.npz"


def found(copies: list[Copy]) -> dict[str, str]:
    return {copy.second.image_path.stem: copy.first.image_path.stem for copy in copies}


def jpeg(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)


def cropped(image: np.ndarray) -> np.ndarray:
    cut = round(0.025 * SIZE)
    return image[cut:-cut, cut:-cut]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "saved as JPEG": jpeg,
    "half": lambda image: cv2.resize(image, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA),
    "other sides": lambda image: cv2.resize(image, (300, 200), interpolation=cv2.INTER_LINEAR),
    "brighter": lambda image: np.clip(image * 1.2 + 10, 0, 255).astype(np.uint8),
    "less contrast": lambda image: (image * 0.7 + 30).astype(np.uint8),
    "cropped": cropped,
    "cropped on two sides": lambda image: image[round(0.05 * SIZE) :, round(0.05 * SIZE) :],
    "all of it": lambda image: jpeg(cropped(np.clip(image * 1.1, 0, 255).astype(np.uint8))),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("turned", [False, True])
def test_a_picture_that_was_saved_again_is_found(tmp_path: Path, change: str, turned: bool) -> None:
    for number in range(8):
        write(tmp_path / f"one/{number}.png", picture(number))
        write(tmp_path / f"two/{number}.png", CHANGES[change](picture(number)) if number < 4 else picture(number + 50))
    first, second = samples(tmp_path / "one"), samples(tmp_path / "two")
    if turned:  # the copy is trained on
        first, second = second, first
    assert found(near_copies(first, second)) == {str(number): str(number) for number in range(4)}
    assert same_files(first, second) == []


def test_another_picture_is_not_a_copy(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / f"one/{number}.png", picture(number))
        write(tmp_path / f"two/{number}.png", picture(number + 100))
        write(tmp_path / f"flat/{number}.png", np.full((SIZE, SIZE, 3), 20 * number, np.uint8))
        write(tmp_path / f"mirrored/{number}.png", picture(number)[:, ::-1].copy())
    one = samples(tmp_path / "one")
    assert near_copies(one, [*samples(tmp_path / "two"), *samples(tmp_path / "mirrored")]) == []
    flat = samples(tmp_path / "flat")
    assert near_copies(flat, flat[::-1]) == []  # there is nothing to see in them


def test_drawn_products_of_two_kinds_are_not_copies(tmp_path: Path) -> None:
    for kind, category in enumerate(sorted(procedural.CATEGORIES)):
        for number in range(4):
            image, _ = procedural.picture(category, None, [kind, number], 128)
            write(tmp_path / f"{'one' if kind % 2 else 'two'}/{category}{number}.png", image)
    assert near_copies(samples(tmp_path / "one"), samples(tmp_path / "two")) == []


def test_equal_files_are_found_without_their_names(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"one/{number}.bmp", picture(number))  # all of one size
        write(tmp_path / f"two/other{number}.bmp", picture(number + 10))
    shutil.copy(tmp_path / "one/1.bmp", tmp_path / "two/renamed.bmp")
    (tmp_path / "two/linked.bmp").symlink_to(tmp_path / "one/2.bmp")
    one, two = samples(tmp_path / "one"), samples(tmp_path / "two")
    assert [(copy.second.image_path.name, copy.first.image_path.name, copy.kind) for copy in same_files(one, two)] == [
        ("linked.bmp", "2.bmp", "the same file"),
        ("renamed.bmp", "1.bmp", "byte for byte the same"),
    ]
    assert same_files(one, samples(tmp_path / "none")) == []


def test_files_that_begin_alike_are_read_to_their_ends(tmp_path: Path) -> None:
    for folder, end in (("one", b"a"), ("two", b"b"), ("three", b"a")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.bmp").write_bytes(bytes(2**15) + end)
    one = samples(tmp_path / "one")
    assert same_files(one, samples(tmp_path / "two")) == []
    assert len(same_files(one, samples(tmp_path / "three"))) == 1


def test_each_image_is_read_once_and_again_when_it_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write(tmp_path / f"one/{number}.png", picture(number))
        write(tmp_path / f"two/{number}.png", picture(number + 10))
    read: list[str] = []
    small = copies._small
    monkeypatch.setattr(copies, "_small", lambda s: (read.append(s.image_path.name), small(s))[1])
    one, two = samples(tmp_path / "one"), samples(tmp_path / "two")
    assert near_copies(one, two) == []
    assert len(read) == 6
    assert near_copies(one, two) == []
    assert len(read) == 6
    write(tmp_path / "two/1.png", jpeg(picture(1)))
    assert found(near_copies(one, two)) == {"1": "1"}
    assert len(read) == 6 + 1 + 2  # the two that are alike are looked at
    assert not any(name.encode() in cache.read_bytes() for name in ("one", "two", "png"))
    cache.write_bytes(b"no archive")
    assert found(near_copies(one, two)) == {"1": "1"}
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("a file in its place")
    assert found(near_copies(one, two)) == {"1": "1"}


def test_an_unreadable_file_is_not_a_copy(tmp_path: Path) -> None:
    write(tmp_path / "one/0.png", picture(0))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "two/gone.png").symlink_to(tmp_path / "nowhere.png")
    two = [Sample("two", "x", "test", tmp_path / f"two/{name}.png", 0) for name in ("torn", "gone")]
    assert near_copies(samples(tmp_path / "one"), two) == []
    assert near_copies([], two) == near_copies(two, []) == []


def test_the_search_finds_each_close_pair_once() -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 2**64, 300, dtype=np.uint64)
    flips = [generator.choice(64, generator.integers(0, 16), replace=False) for _ in first]
    second = first ^ np.array([sum(1 << int(bit) for bit in bits) for bits in flips], np.uint64)
    second[:20] = first[0]  # a crowd in one place
    for limit in (0, 3, CLOSE):
        pairs = Counter(p for left, right in close_pairs(first, second, limit) for p in zip(left, right, strict=True))
        expected = {
            (i, j)
            for i, one in enumerate(first.tolist())
            for j, other in enumerate(second.tolist())
            if (one ^ other).bit_count() <= limit
        }
        assert pairs.keys() == expected
        assert set(pairs.values()) == {1}


def test_the_search_goes_on_beyond_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afclip_lightning.data.picture_hash.PAIRS", 7)
    same = np.full(10, 2**63 + 5, np.uint64)
    pairs = [pair for rows in close_pairs(same, same) for pair in zip(*(part.tolist() for part in rows), strict=True)]
    assert sorted(pairs) == [(a, b) for a in range(10) for b in range(10)]


def test_a_hash_sees_no_brightness_and_structure_no_contrast() -> None:
    small = reduced(picture(3)) // 2 + 20
    assert (hashes_of(small) == hashes_of(small + 30)).all()
    assert structure(small, 0) @ structure(small // 2, 0) > 0.97
    assert structure(small, 0) @ structure(small, 0) == pytest.approx(1, abs=1e-5)
    assert not structure(np.full_like(small, 9), 0).any()


def test_copies_are_reported_in_sentences(tmp_path: Path) -> None:
    write(tmp_path / "one/0.png", picture(0))
    one = samples(tmp_path / "one")[0]
    text = told([Copy(one, one, "nearly the same picture")] * 7)
    first, *_, last = text.splitlines()
    place = tmp_path / "one/0.png"
    assert first == f"{place}, of one, is nearly the same picture as {place}, of one."
    assert last == "And 2 more."
    assert len(text.splitlines()) == 6


def test_two_sets_are_compared_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write(tmp_path / f"one/nut/test/good/{number}.png", picture(number))
        write(
            tmp_path / f"two/pin/test/good/{number}.png", jpeg(picture(number)) if number == 1 else picture(number + 9)
        )
    shutil.copy(tmp_path / "one/nut/test/good/2.png", tmp_path / "two/pin/test/good/copy.png")
    args = ["check", "MVTecLayout", f"--root={tmp_path}/one", "--against=MVTecLayout", f"--against_root={tmp_path}/two"]
    assert main(args) == 1
    lines = capsys.readouterr().out.splitlines()
    place = tmp_path / "two/pin/test/good"
    assert lines[0].startswith(f"{place}/copy.png, of two, is byte for byte the same as ")
    assert lines[1].startswith(
        f"{place}/1.png, of two, is nearly the same picture as {tmp_path}/one/nut/test/good/1.png"
    )
    assert lines[2] == "4 images of two and 3 of one: 2 are shared."
    assert main([*args, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [(Path(row["second"]).name, row["kind"]) for row in rows] == [
        ("copy.png", "byte for byte the same"),
        ("1.png", "nearly the same picture"),
    ]
    for name in ("copy", "1"):
        (place / f"{name}.png").unlink()
    assert main(args) == 0
    assert capsys.readouterr().out == "2 images of two and 3 of one: 0 are shared.\n"
    assert main([*args[:-1], f"--against_root={tmp_path}/gone"]) == 2
    assert "gone does not exist" in capsys.readouterr().err
    assert main(args[:-1]) == 2
    assert "--against_root DIR names the folder" in capsys.readouterr().err
