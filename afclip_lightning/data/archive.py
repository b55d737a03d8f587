"""Unpacks downloaded archives into the folder of a dataset."""

import filecmp
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from tarfile import EmptyHeaderError, InvalidHeaderError, ReadError, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import IO

from afclip_lightning.data.base import AnomalyDataModule
from afclip_runtime.errors import DatasetError, shown
from afclip_runtime.files import atomic_path
from afclip_runtime.images.find import list_folders

STAGE = ".unpacked"  # inside the root, so that a move is a rename; hidden, so that no dataset reads it
DEPTH = 3  # folders that an archive may wrap around a dataset
LONGEST_NAME = 255  # bytes of the name of a file or folder, as most systems have it
CHUNK = 2**20
Lacking = Callable[[Path], int | None]
BROKEN = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, ValueError)
STARTS = {  # first bytes of archives, and of parts of archives
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"PK\x07\x08": "one part of a zip archive in several parts",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\0": "compressed with xz",
}


def prepare(dataset: AnomalyDataModule, archives: Sequence[Path]) -> int:
    """Unpacks archives, finds the folder in them that corresponds to the dataset's root, and moves its files there.

    Existing files are never overwritten: an equal file stays, and a different one is an error. An interrupted call
    leaves whole files only, and the next call with the same archives continues. If an archive is refused, its unpacked
    files are removed. A dataset may consist of several archives, which are given at once or one after the other. A
    dataset that is cut into tiles is unpacked to its `raw` (by default its `raw_folder` beside its root) and then cut.
    All its archives must be given at once.

    Args:
        dataset: The dataset. Files are moved into its `root`.
        archives: Zip or tar archives, compressed or not.

    Returns:
        Number of files that were moved into the root.

    Raises:
        DatasetError: An archive is absent, damaged, cut off or of another kind; it holds a path that leads out of its
            folder, a name that is too long, a link, a pipe or a device, or a name twice with different contents; it
            does not hold this dataset; a different file already exists; or the root cannot be written to.
    """
    root = dataset.archive_root
    stages = root / STAGE
    for folder in (root, stages):
        if os.path.lexists(folder) and (not folder.is_dir() or (folder is stages and folder.is_symlink())):
            raise DatasetError(f"{folder} is not a folder, or is a link: nothing is unpacked there. Remove it.")
    for archive in archives:
        if not archive.is_file():
            raise DatasetError(f"{archive}: there is no such file. Give --from what you downloaded.")
    stage = stages / _key(archives)
    if stage.is_symlink():
        raise DatasetError(f"{stage} is a link. Remove it.")
    try:
        for archive in archives:
            _unpack(archive, stage)
        base = _find_base(stage, dataset.lacking)
        if base is None:
            top = ", ".join(sorted(path.name for path in stage.iterdir())[:8]) if stage.is_dir() else "nothing"
            raise DatasetError(
                f"{', '.join(map(str, archives))}: does not hold {dataset.name}. It holds: {top}.\n"
                f"Expected:\n{dataset.archive_layout.strip()}\n"
                "Where several archives make up the dataset, give all of them at once."
            )
    except DatasetError:
        shutil.rmtree(stage, ignore_errors=True)  # no later call could use it
        if stages.is_dir() and not any(stages.iterdir()):
            stages.rmdir()
        raise
    except OSError as error:
        raise DatasetError(f"{root}: cannot be written to ({error}). Choose another --root.") from error
    try:
        moved = _merge(base, root)
    except OSError as error:
        raise DatasetError(
            f"{root}: cannot be written to ({error}). What was unpacked lies in {stage}; the same command goes on."
        ) from error
    shutil.rmtree(stages)  # including files of earlier interrupted calls
    dataset.on_unpacked()
    return moved


def _key(archives: Sequence[Path]) -> str:
    """Returns a key of the archives' content. Other archives have another key, whatever their names."""
    digest = blake2b(digest_size=8)
    for archive in archives:
        status = archive.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        with archive.open("rb") as file:
            digest.update(file.read(CHUNK))
            file.seek(max(0, status.st_size - CHUNK))  # a zip archive has its table, with checksums, at the end
            digest.update(file.read(CHUNK))
    return digest.hexdigest()


def _unpack(archive: Path, stage: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                members = [info for info in zipped.infolist() if not info.is_dir()]
                for info in members:
                    _check_member(archive, info.filename, regular=info.external_attr >> 28 in (0, 8))
                for info in members:
                    _write_member(archive, stage, info.filename, info.file_size, partial(zipped.open, info))
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive, tarinfo=_Entry) as tarred:
                for entry in tarred:  # one pass: access by name would unpack a compressed archive again
                    if not entry.isdir():
                        _check_member(archive, entry.name, entry.isreg())
                        _write_member(archive, stage, entry.name, entry.size, partial(tarred.extractfile, entry))
                while tarred.fileobj is not None and tarred.fileobj.read(CHUNK):
                    pass  # up to the checksum of the compressed data
        else:
            raise DatasetError(f"{archive}: {_what_it_is(archive)}")
    except (RuntimeError, NotImplementedError) as error:  # a password, a rare kind of compression
        raise DatasetError(
            f"{archive}: cannot be unpacked here ({error}). Unpack it yourself, then use check."
        ) from error
    except (*BROKEN, OSError) as error:  # bzip2 has no error of its own
        cut = isinstance(error, EOFError) or "unexpected end" in str(error)
        what = "is cut off" if cut else "cannot be unpacked"
        raise DatasetError(f"{archive}: {what} ({error}). Download it again.") from error


class _Entry(tarfile.TarInfo):
    """A member of a tar archive. The library stops without an error at a cut-off file or a damaged later header."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Entry":
        try:
            return super().fromtarfile(tarfile)
        except (EmptyHeaderError, TruncatedHeaderError) as error:
            raise ReadError("unexpected end, without the mark that ends an archive") from error
        except InvalidHeaderError as error:
            raise ReadError(f"damaged in the middle: {error}") from error


def _what_it_is(archive: Path) -> str:
    """Returns the end of the message for a file that is not a whole archive."""
    with archive.open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty. Download it again."
    kind = next((kind for mark, kind in STARTS.items() if start.startswith(mark)), "")
    if start[257:262] == b"ustar":
        kind = "a tar archive"
    if kind:
        return f"begins as {kind}, and cannot be read to its end: it is cut off or damaged. Download it again."
    return "is neither a zip nor a tar archive. Unpack it yourself, then use check."


def _check_member(archive: Path, name: str, regular: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name.partition("/")[0]:
        raise DatasetError(
            f"{archive}: its member {shown(name[:80])!r} leads out of the folder that it is unpacked to; refused."
        )
    if not regular:
        raise DatasetError(
            f"{archive}: its member {shown(name[:80])!r} is a link or a device; refused. Unpack it yourself."
        )
    if long := [part for part in path.parts if len(os.fsencode(part)) > LONGEST_NAME]:
        raise DatasetError(
            f"{archive}: its member {shown(long[0][:40])!r}… has a name of {len(os.fsencode(long[0]))} bytes; at most "
            f"{LONGEST_NAME} are unpacked. Unpack it yourself, under a shorter name."
        )


def _write_member(
    archive: Path, stage: Path, name: str, size: int, open_member: Callable[[], IO[bytes] | None]
) -> None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return  # files of operating systems, which datasets do not read
    target = stage.joinpath(*parts)
    if not os.path.realpath(target).startswith(os.path.realpath(stage) + os.sep):
        raise DatasetError(f"{target}: a link leads out of {stage}. Remove {stage.parent}.")
    member = open_member()
    if member is None:  # not a file; refused before
        return
    with member:
        if not target.is_file():
            with atomic_path(target) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(member, file)
        elif target.stat().st_size != size or not _equal(member, target):  # of an interrupted call, or of the same name
            raise DatasetError(
                f"{archive}: {shown(name[:80])!r} occurs twice, with different contents. Unpack it yourself."
            )


def _equal(member: IO[bytes], path: Path) -> bool:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if member.read(len(chunk)) != chunk:
                return False
    return not member.read(1)


def _find_base(stage: Path, lacking: Lacking) -> Path | None:
    """Returns the folder below `stage` that lacks least, the outermost if several do; `None` if all lack everything."""
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
    inside = os.path.realpath(root) + os.sep
    for path, target in targets.items():
        if not os.path.realpath(target).startswith(inside):
            raise DatasetError(f"{target}: a link leads out of {root}. Nothing was moved; remove the link.")
        if os.path.lexists(target) and not (target.is_file() and filecmp.cmp(path, target, shallow=False)):
            raise DatasetError(
                f"{target} already exists and differs from {path}. Nothing was moved. Remove one of them."
            )
    moved = 0
    for path, target in targets.items():
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            moved += 1
    return moved
