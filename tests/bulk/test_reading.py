"""Reading of a shard's images: in order, and with a limited number of bytes in memory."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afclip_runtime.bulk.parts import PartWriter
from afclip_runtime.images.reader import Content
from afclip_runtime.inspection.table import Record
from afclip_runtime.views import decoding
from tests.support.sharded import inspect, load, write_numbered

COUNT = 40


def contents(size: int, pulled: list[int]) -> Iterator[Content]:
    """Yields images of a given file size, and records each when it is consumed."""
    for number in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(file, "PNG")
        pulled.append(number)
        yield Content(f"{number}.png", file.getvalue() + bytes(size))  # decoders ignore bytes after the image


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("size", "most"), [(0, 4 + 2 + 4), (10**5, 2 + 1 + 4)])
def test_large_files_are_not_read_far_ahead(
    size: int, most: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "BYTES_AHEAD", 2 * 10**5)  # two of the large ones; a batch has 4 images
    model, pulled, seen, ahead = load()["Blue"], list[int](), [], []
    for index, outcome in model.stream(contents(size, pulled), workers):
        seen.append((index, round(outcome.score * 255)))  # type: ignore[union-attr]
        ahead.append(len(pulled) - len(seen))
    assert seen == [(number, number) for number in range(COUNT)]
    assert 0 < max(ahead) <= most


def test_a_slow_writer_slows_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbered(tmp_path / "images", COUNT)
    decoded, written, ahead = [], [], []
    decode, add = decoding.read, PartWriter.add

    def counted(source: object) -> object:
        decoded.append(source)
        return decode(source)  # type: ignore[arg-type]

    def slow(part: PartWriter, row: Record) -> None:
        time.sleep(0.02)  # decoding one of these images takes a hundredth of that
        ahead.append(len(decoded) - len(written))
        written.append(row)
        add(part, row)

    monkeypatch.setattr(decoding, "read", counted)
    monkeypatch.setattr(PartWriter, "add", slow)
    inspect(tmp_path / "out", tmp_path / "images", shard_images=COUNT)
    assert len(decoded) == len(written) == COUNT
    assert 4 < max(ahead) <= 4 + 2 + 4  # decoded ahead: a batch and an image per thread; and the batch that is written


def test_fetched_images_fail_independently() -> None:
    def fail() -> Content:
        raise decoding.UserError("away")

    outcomes = dict(load()["Blue"].stream([fail, next(contents(0, [])), fail], 2))
    assert [str(outcomes[index]) for index in (0, 2)] == ["away", "away"]
    assert not isinstance(outcomes[1], Exception)
