"""Paths of the files of a feature store, and the walk through a large store. Without torch.

    ROOT/KEY/TAP/ab/cd/abcd….safetensors    KEY: a backbone and how it was run; TAP: a block; abcd…: the image's digest

Digests are uniform, so each of the 65,536 folders of a tap holds about the same number of images: about 1,500 of 10^8.
Earlier versions wrote `TAP/ab/abcd….safetensors`. A run moves such a file to its new path when it reads it.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

SUFFIX = ".safetensors"
THREADS = 8  # a file system on a network answers several questions at once
T = TypeVar("T")


def feature_path(folder: Path, tap: str, digest: str) -> Path:
    """Returns the path of the features of an image.

    Args:
        folder: Folder of one backbone, `ROOT/KEY`.
        tap: Name of the tap.
        digest: Digest of the image.
    """
    return folder / tap / digest[:2] / digest[2:4] / f"{digest}{SUFFIX}"


def find_features(folder: Path, tap: str, digest: str) -> Path | None:
    """Returns the path of the features of an image, or `None` if they are missing; see `feature_path`.

    A file of an earlier version is moved to its new path. If the store is read-only, its old path is returned.
    """
    path = feature_path(folder, tap, digest)
    if path.exists():
        return path
    earlier = path.parents[1] / path.name
    if not earlier.exists():
        return None
    try:
        path.parent.mkdir(exist_ok=True)
        earlier.rename(path)
    except FileNotFoundError:  # another process has moved it meanwhile
        return path if path.exists() else None
    except OSError:
        return earlier
    return path


def place_of(path: Path) -> tuple[str, str, str] | None:
    """Returns key, tap and digest of a file of features, or `None` if it lies in a folder of other digests."""
    digest = path.stem
    if path.parts[-3:-1] == (digest[:2], digest[2:4]):
        place = path.parts[-5:-3]
    elif path.parts[-2:-1] == (digest[:2],):  # layout of an earlier version
        place = path.parts[-4:-2]
    else:
        return None
    return (*place, digest) if len(place) == 2 else None


@dataclass(frozen=True)
class Folder:
    """A folder that holds files of features.

    Attributes:
        key: Key of the backbone.
        tap: Name of the tap.
        path: The folder.
    """

    key: str
    tap: str
    path: Path

    def entries(self, suffix: str = SUFFIX) -> Iterator[os.DirEntry[str]]:
        """Yields the files whose names end with `suffix`, sorted by name."""
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:  # another process may have removed it
            yield from sorted((e for e in entries if e.name.endswith(suffix)), key=lambda entry: entry.name)


def keys(root: Path) -> list[str]:
    """Returns the keys of a store, sorted."""
    return _folders_in(root)


def taps(root: Path, key: str) -> list[str]:
    """Returns the taps of a key, sorted."""
    return _folders_in(root / key)


def folders(root: Path, key: str | None = None, tap: str | None = None) -> Iterator[Folder]:
    """Yields the folders of a store that hold files of features, sorted.

    Args:
        root: Folder of the store.
        key: Key of the backbone; all by default.
        tap: Name of the tap; all by default.
    """
    for of_key in keys(root) if key is None else [key]:
        for of_tap in taps(root, of_key) if tap is None else [tap]:
            for first in _folders_in(root / of_key / of_tap):
                outer = root / of_key / of_tap / first
                yield Folder(of_key, of_tap, outer)
                for second in _folders_in(outer):
                    yield Folder(of_key, of_tap, outer / second)


def feature_files(root: Path, key: str | None = None, tap: str | None = None) -> Iterator[Path]:
    """Yields the files of features of a store, sorted folder by folder; see `folders`."""
    for folder in folders(root, key, tap):
        for entry in folder.entries():
            yield Path(entry.path)


def over_folders(root: Path, work: Callable[[Folder], T], title: str) -> Iterator[T]:
    """Yields the result of `work` for each folder of a store, in order. Uses several threads and shows progress.

    Memory use does not grow with the store.

    Args:
        root: Folder of the store.
        work: Function of one folder.
        title: Title of the progress bar.
    """
    total = sum(len(_folders_in(root / key / tap)) for key in keys(root) for tap in taps(root, key))
    pending: deque[tuple[Folder, Future[T]]] = deque()
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(desc=title, total=total, unit="folder", disable=not sys.stderr.isatty()) as bar,
    ):

        def first() -> T:
            folder, future = pending.popleft()
            made = future.result()
            if folder.path.parent.name == folder.tap:  # a folder of the first level, which was counted
                bar.update()
            return made

        for folder in folders(root):
            pending.append((folder, pool.submit(work, folder)))
            if len(pending) > 4 * THREADS:
                yield first()
        while pending:
            yield first()


def _folders_in(path: Path) -> list[str]:
    """Returns the sorted names of the subfolders that are not hidden. Never holds a list of the files in memory."""
    try:
        with os.scandir(path) as entries:
            names = [
                e.name for e in entries if not e.name.startswith(".") and not e.name.endswith(SUFFIX) and e.is_dir()
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(names)
