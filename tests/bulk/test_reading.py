"""Images of a shard on their way to the model: as they come, and no more bytes of them at once than is allowed."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from afclip_runtime.images.reader import Content
from afclip_runtime.views import decoding
from tests.support.sharded import load

COUNT = 40


def contents(size: int, pulled: list[int]) -> Iterator[Content]:
    """Yields images whose files have so many bytes, and notes each as it is taken."""
    for number in range(COUNT):
        file = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(file, "PNG")
        pulled.append(number)
        yield Content(f"{number}.png", file.getvalue() + bytes(size))  # decoders pass over what follows the image


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


def test_what_is_fetched_fails_for_itself() -> None:
    def fail() -> Content:
        raise decoding.UserError("away")

    outcomes = dict(load()["Blue"].stream([fail, next(contents(0, [])), fail], 2))
    assert [str(outcomes[index]) for index in (0, 2)] == ["away", "away"]
    assert not isinstance(outcomes[1], Exception)
