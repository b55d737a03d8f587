"""Images that two datasets share: the same file, equal files, and pictures that were saved again."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from afclip_lightning.data.mapped import mapped
from afclip_lightning.data.picture_hash import ALIKE, VIEWS, close_pairs, hashes_of, reduced, structure
from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError, UserError, shown
from afclip_runtime.files import atomic_path, fingerprint, open_regular
from afclip_runtime.files.arrays import read_arrays
from afclip_runtime.images.reader import read

Kind = Literal["the same file", "byte for byte the same", "nearly the same picture"]
RULE = 1
"""Version of the hashes. Hashes of another version on disk are ignored."""
PAIRS = 4096
"""Number of candidates that are compared at a time: 33 MB of structures at most."""
LOOKS = 16384
"""Largest number of small pictures that are kept, 6.4 kB each. With more, pictures are read again when needed."""
DRAFT = 320
"""Smallest side at which a JPEG is decoded, in pixels: four times the side that is compared."""


class Copy(NamedTuple):
    """An image that two datasets share.

    Attributes:
        first: Sample of the first dataset.
        second: Sample of the second dataset.
        kind: Kind of equality.
    """

    first: Sample
    second: Sample
    kind: Kind


def same_files(first: Sequence[Sample], second: Sequence[Sample]) -> list[Copy]:
    """Returns the images of `second` that are files of `first`, or equal to one byte for byte, in their order.

    Only files of equal size are read, and only those with equal beginnings are read to the end.
    """
    by_place = {sample.image_path.resolve(): sample for sample in reversed(first)}
    alike = _Alike(by_place.values(), (_size, _beginning, _content))
    found = []
    for sample in second:
        if one := by_place.get(sample.image_path.resolve()):
            found.append(Copy(one, sample, "the same file"))
        elif equal := alike.to(sample):
            found.append(Copy(equal, sample, "byte for byte the same"))
    return found


class _Alike:
    """Groups samples by their files in steps. Each step reads only files that were equal in all earlier steps.

    Args:
        samples: The samples.
        steps: Functions that return a key of a file, the cheapest first; an empty text if it is not known.
    """

    def __init__(self, samples: Iterable[Sample], steps: Sequence[Callable[[Path], str]]) -> None:
        self.first, *self.rest = steps
        self.by: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            self.by[self.first(sample.image_path)].append(sample)
        self.further: dict[str, _Alike] = {}

    def to(self, sample: Sample) -> Sample | None:
        """Returns the first sample that equals the given one in all steps; `None` if there is none."""
        fact = self.first(sample.image_path)
        if not fact or fact not in self.by:
            return None
        if not self.rest:
            return self.by[fact][0]
        if fact not in self.further:
            self.further[fact] = _Alike(self.by[fact], self.rest)
        return self.further[fact].to(sample)


def near_copies(
    first: Sequence[Sample], second: Sequence[Sample], threads: int | None = None, progress: bool = False
) -> list[Copy]:
    """Returns the images of `second` that show a picture of `first`: saved again, smaller, brighter or cropped.

    Each image is decoded once, and its hashes are cached on disk. Images that cannot be read are left out.

    Args:
        first: Images of one or several datasets.
        second: Images of other datasets.
        threads: Number of files that are read at a time; by default the number of processors.
        progress: Show a progress bar on the error stream.
    """
    if not first or not second:
        return []
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        known = _Hashes(_cache_path())
        hashes = [known.of(samples, pool, progress) for samples in (first, second)]
        known.save()
        seen = [np.flatnonzero(one[:, 0]).tolist() for one in hashes]  # without unread images and images of one colour
        first, second = ([part[row] for row in rows] for part, rows in zip((first, second), seen, strict=True))
        hashes = [one[rows] for one, rows in zip(hashes, seen, strict=True)]
        looks = _Looks(pool)
        best: dict[int, tuple[float, int]] = {}  # by rows of `second`
        for rows, others, view, other in _candidates(*hashes):
            for start in range(0, len(rows), PAIRS):
                ones, twos = rows[start : start + PAIRS].tolist(), others[start : start + PAIRS].tolist()
                alike = looks.correlation([first[row] for row in ones], view, [second[row] for row in twos], other)
                for row, one, value in zip(twos, ones, alike.tolist(), strict=True):
                    if value >= ALIKE:
                        best[row] = max(best.get(row, (0.0, 0)), (value, -one))
    return [Copy(first[-one], second[row], "nearly the same picture") for row, (_, one) in sorted(best.items())]


def _candidates(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
    """Yields rows of both with close hashes, and their views. One of the two views is the whole picture."""
    views = len(VIEWS)
    for one, other in ((range(1), range(views)), (range(1, views), range(1))):
        for left, right in close_pairs(first[:, list(one)].ravel(), second[:, list(other)].ravel()):
            rows, others = left // len(one), right // len(other)
            view, opposite = left % len(one) + one.start, right % len(other)
            for pair in np.unique(np.stack([view, opposite], 1), axis=0).tolist():
                of = (view == pair[0]) & (opposite == pair[1])
                yield rows[of], others[of], pair[0], pair[1]


class _Looks:
    """The structures of candidates.

    Args:
        pool: Threads that read files.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool
        self.small: dict[Sample, np.ndarray | None] = {}

    def correlation(self, first: list[Sample], view: int, second: list[Sample], other: int) -> np.ndarray:
        """Returns the correlation of each pair's structures, `[N]`; 0 if an image cannot be read."""
        if len(self.small) > LOOKS:
            self.small.clear()
        new = [sample for sample in dict.fromkeys([*first, *second]) if sample not in self.small]
        self.small.update(zip(new, mapped(self.pool, _small, new), strict=True))
        left, right = self._structures(first, view), self._structures(second, other)
        return np.array([float(left[a] @ right[b]) for a, b in zip(first, second, strict=True)])

    def _structures(self, samples: list[Sample], view: int) -> dict[Sample, np.ndarray]:
        small = {sample: self.small[sample] for sample in samples}
        return {s: np.zeros(1024, np.float32) if one is None else structure(one, view) for s, one in small.items()}


class _Hashes:
    """Hashes of images, cached on disk by path, size and modification time.

    Args:
        path: File of the cache. If it cannot be read, a new one is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[int, np.ndarray] = {}
        with suppress(UserError, ValueError, OSError):
            kept = read_arrays(path, {"keys": np.uint64, "hashes": np.uint64})
            self.known = dict(zip(kept["keys"].tolist(), kept["hashes"].reshape(-1, len(VIEWS)), strict=True))
        self.before = len(self.known)

    def of(self, samples: Sequence[Sample], pool: ThreadPoolExecutor, progress: bool) -> np.ndarray:
        """Returns the hashes of images, `[N, 6]`, uint64; all 0 for an image that cannot be read."""
        keys = [_key(sample) for sample in samples]
        new = [(key, sample) for key, sample in zip(keys, samples, strict=True) if key not in self.known]
        found = mapped(pool, _hashes_of, (sample for _, sample in new))
        bar = tqdm(found, desc="looking for copies", total=len(new), unit="image", disable=not progress or not new)
        unread = np.zeros(len(VIEWS), np.uint64)
        hashes = dict(self.known)
        for (key, _), one in zip(new, bar, strict=True):
            hashes[key] = unread if one is None else one
            if one is not None:
                self.known[key] = one
        return np.array([hashes[key] for key in keys], np.uint64).reshape(-1, len(VIEWS))

    def save(self) -> None:
        """Writes new hashes. If they cannot be written, they are computed again next time."""
        if len(self.known) == self.before:
            return
        with suppress(UserError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path, durable=False) as temporary, temporary.open("wb") as file:
                hashes = np.array(list(self.known.values()), np.uint64)
                np.savez(file, keys=np.array(list(self.known), np.uint64), hashes=hashes.ravel())


def _cache_path() -> Path:
    """Returns the file of the hashes, in the user's cache folder. It contains no image names."""
    folder = os.environ.get("AFCLIP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "afclip_lightning")
    return Path(folder).expanduser() / "picture_hashes.npz"


def _key(sample: Sample) -> int:
    try:
        state = sample.image_path.stat()
    except OSError:
        return 0
    facts = RULE, str(sample.image_path.resolve()), state.st_size, state.st_mtime_ns, sample.white
    return int.from_bytes(hashlib.blake2b(repr(facts).encode(errors="surrogateescape"), digest_size=8).digest(), "big")


def _small(sample: Sample) -> np.ndarray | None:
    try:
        return reduced(read(sample.image_path, draft=DRAFT).rgb(sample.white))
    except DatasetError:
        return None


def _hashes_of(sample: Sample) -> np.ndarray | None:
    small = _small(sample)
    return None if small is None else hashes_of(small)


def _size(path: Path) -> str:
    with suppress(OSError):
        return str(path.stat().st_size)
    return ""


def _beginning(path: Path) -> str:
    with suppress(OSError, UserError), open_regular(path) as file:
        return hashlib.blake2b(file.read(2**14)).hexdigest()
    return ""


def _content(path: Path) -> str:
    with suppress(OSError, UserError):
        return fingerprint(path)
    return ""


def told(copies: Sequence[Copy], most: int = 5) -> str:
    """Returns one sentence per copy, for at most `most` copies, and the number of the others."""
    lines = [
        f"{shown(copy.second.image_path)}, of {shown(copy.second.dataset)}, is {copy.kind} as "
        f"{shown(copy.first.image_path)}, of {shown(copy.first.dataset)}."
        for copy in copies[:most]
    ]
    return "\n".join([*lines, *([f"And {len(copies) - most} more."] if len(copies) > most else [])])
