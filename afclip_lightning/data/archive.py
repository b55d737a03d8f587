"""Unpacks what a user downloaded to where a dataset expects it."""

import copy
import filecmp
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.images import list_folders
from afclip_lightning.data.recipes import TiledLayout
from afclip_lightning.errors import DatasetError
from afclip_lightning.files import atomic_path

STAGE = ".unpacked"  # inside the root, so that moving is renaming; hidden, so that no dataset reads it
DEPTH = 3  # folders that an archive may wrap around a dataset
Lacking = Callable[[Path], int | None]
BROKEN = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, RuntimeError, NotImplementedError)


def prepare(dataset: AnomalyDataModule, archives: Sequence[Path]) -> int:
    """Unpacks archives, finds the folder in them that the dataset's root should be, and moves its files there.

    What is there already is never overwritten: an equal file stays, another is an error. An interrupted call leaves
    whole files only, and the next one goes on. Several archives, at once or one after the other, may make up a dataset.
    A set that is cut into tiles is unpacked to its `raw`, by default its `raw_folder` beside its root, and then cut.

    Args:
        dataset: The dataset; its `root` is where it is to lie.
        archives: Zip or tar archives, compressed or not.

    Returns:
        How many files were moved into the root.

    Raises:
        DatasetError: An archive is absent, damaged, of another kind or holds a path that climbs out, a link or a
            device; it does not hold this dataset; or a file that differs is already there.
    """
    if not isinstance(dataset, TiledLayout):
        return _place(archives, dataset.root, partial(_lacking, dataset), dataset.name, dataset.layout)
    raw = copy.copy(dataset)
    raw.raw = dataset.raw or dataset.root.with_name(dataset.raw_folder)
    moved = _place(archives, raw.raw, partial(_lacking_tiles, dataset), dataset.name, dataset.raw_layout)
    raw.prepare_data()
    return moved


def _place(archives: Sequence[Path], root: Path, lacking: Lacking, name: str, layout: str) -> int:
    """Unpacks archives and moves what belongs into `root` there; returns how many files were moved."""
    stage = root / STAGE
    for archive in archives:
        _unpack(archive, stage)
    base = _find_base(stage, lacking)
    if base is None:
        top = ", ".join(sorted(path.name for path in stage.iterdir())[:8]) if stage.is_dir() else "nothing"
        raise DatasetError(
            f"{', '.join(map(str, archives))}: does not hold {name}. It holds: {top}.\nExpected:\n{layout.strip()}\n"
            f"What was unpacked lies in {stage}; remove it if this is another dataset."
        )
    moved = _merge(base, root)
    shutil.rmtree(stage)
    return moved


def _lacking(dataset: AnomalyDataModule, folder: Path) -> int | None:
    """Returns how much a dataset lacks if `folder` is its root; `None` if it has no category there."""
    here = copy.copy(dataset)
    here.root = folder
    return len(here.missing()) if here.find_categories() else None


def _lacking_tiles(dataset: TiledLayout, folder: Path) -> int | None:
    """Returns 0 if `folder` is a raw set that can be cut, else `None`."""
    try:
        return 0 if dataset.find_tiles(folder) else None
    except DatasetError:
        return None


def _unpack(archive: Path, stage: Path) -> None:
    if not archive.is_file():
        raise DatasetError(f"{archive}: there is no such file. Give --from what you downloaded.")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                members = [info for info in zipped.infolist() if not info.is_dir()]
                for info in members:
                    _check_member(archive, info.filename, regular=info.external_attr >> 28 in (0, 8))
                for info in members:
                    _write_member(stage, info.filename, info.file_size, partial(zipped.open, info))
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tarred:
                for entry in tarred:  # one pass: looking for a name would unpack a compressed archive again
                    if not entry.isdir():
                        _check_member(archive, entry.name, entry.isreg())
                        _write_member(stage, entry.name, entry.size, partial(tarred.extractfile, entry))
        else:
            raise DatasetError(f"{archive}: is neither a zip nor a tar archive. Unpack it yourself, then use check.")
    except BROKEN as error:
        raise DatasetError(f"{archive}: cannot be unpacked ({error}). Download it again.") from error


def _check_member(archive: Path, name: str, regular: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name.partition("/")[0]:
        raise DatasetError(f"{archive}: its member {name!r} leads out of the folder that it is unpacked to; refused.")
    if not regular:
        raise DatasetError(f"{archive}: its member {name!r} is a link or a device; refused. Unpack it yourself.")


def _write_member(stage: Path, name: str, size: int, open_member: Callable[[], IO[bytes] | None]) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return  # what systems leave behind; datasets do not read it
    target = stage.joinpath(*parts)
    if target.is_file() and target.stat().st_size == size:
        return  # whole, of a call that was interrupted
    member = open_member()
    if member is None:  # a tar archive has none for what is not a file; those were refused
        return
    with member, atomic_path(target) as temporary, temporary.open("wb") as file:
        shutil.copyfileobj(member, file)


def _find_base(stage: Path, lacking: Lacking) -> Path | None:
    """Returns the folder below `stage` that lacks least, the outermost of several; `None` if all lack everything."""
    everything = lacking(stage / "no such folder")
    best: tuple[int, int, Path] | None = None
    for depth, folder in _folders(stage):
        count = lacking(folder)
        if count is None or (everything is not None and count >= everything):
            continue
        if best is None or (count, depth) < best[:2]:
            best = (count, depth, folder)
    return best[2] if best else None


def _folders(stage: Path, depth: int = 0) -> Iterator[tuple[int, Path]]:
    yield depth, stage
    if depth < DEPTH:
        for folder in list_folders(stage):
            yield from _folders(folder, depth + 1)


def _merge(base: Path, root: Path) -> int:
    files = sorted(path for path in base.rglob("*") if path.is_file())
    targets = {path: root / path.relative_to(base) for path in files}
    for path, target in targets.items():
        if target.exists() and not (target.is_file() and filecmp.cmp(path, target, shallow=False)):
            raise DatasetError(f"{target}: is there already and differs from {path}. Nothing was moved; remove one.")
    moved = 0
    for path, target in targets.items():
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            moved += 1
    return moved
