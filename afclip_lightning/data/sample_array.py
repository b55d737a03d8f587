"""Samples in a few arrays, so that loader processes share their memory.

A list of samples takes hundreds of bytes of Python objects per image. A forked process copies each page that it reads,
because reading changes reference counts. A spawned process receives a copy of the whole list. Arrays are shared, or
sent as one block.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from afclip_lightning.types import Sample

_NOWHERE = Path()


class SampleArray(Sequence[Sample]):
    """A sequence of samples. Each sample is created when it is accessed.

    Paths and groups are in one array of bytes. The other fields have few different values, which are stored once.

    Args:
        samples: The samples.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        numbers: dict[tuple[Any, ...], int] = {}
        self._kinds: list[Sample] = []
        kinds: list[int] = []
        ends: list[int] = [0]
        texts = bytearray()
        for sample in samples:
            kind = replace(sample, image_path=_NOWHERE, mask_path=sample.mask_path and _NOWHERE, group="")
            # comparing the shapes of regions takes long, and equal ones are usually the same object
            key = (*(value for value in vars(kind).values() if value is not kind.roi), id(kind.roi))
            number = numbers.setdefault(key, len(numbers))
            if number == len(self._kinds):
                self._kinds.append(kind)
            kinds.append(number)
            for text in (
                str(sample.image_path),
                "" if sample.mask_path is None else str(sample.mask_path),
                sample.group,
            ):
                texts += text.encode(errors="surrogateescape")
                ends.append(len(texts))
        self._kind = np.array(kinds, np.int32)
        self._ends = np.array(ends, np.int64)
        self._texts = np.frombuffer(bytes(texts), np.uint8)

    def __len__(self) -> int:
        return len(self._kind)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        kind = self._kinds[self._kind[index]]
        image, mask, group = (self._text(3 * index + part) for part in range(3))
        mask_path = None if kind.mask_path is None else Path(mask)
        return replace(kind, image_path=Path(image), mask_path=mask_path, group=group)

    def _text(self, number: int) -> str:
        part = self._texts[self._ends[number] : self._ends[number + 1]]
        return part.tobytes().decode(errors="surrogateescape")
