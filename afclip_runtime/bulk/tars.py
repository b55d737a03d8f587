"""Images in tar archives, as in WebDataset, read in one pass in bounded memory."""

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from afclip_runtime.errors import UserError
from afclip_runtime.images.find import IMAGE_SUFFIXES

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LARGEST = 2**31  # bytes of an image file


class Member(NamedTuple):
    """An image of an archive.

    Attributes:
        name: Path in the archive.
        size: Size in bytes.
        mtime_ns: Time of the last change, in nanoseconds.
        data: Its bytes; `None` if it cannot be read.
        error: Reason why it cannot be read, or empty.
    """

    name: str
    size: int
    mtime_ns: int
    data: bytes | None
    error: str = ""


class _Header(tarfile.TarInfo):
    """A header that distinguishes damage from the end mark of an archive. `tarfile` stops silently at both."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "tarfile.TarInfo":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a header is missing: {error}") from error


def read_tar(file: IO[bytes], name: str) -> Iterator[Member]:
    """Yields the images of an archive in its order. Folders and files without the suffix of an image are skipped.

    Args:
        file: The archive, with or without gzip compression.
        name: Name of the archive in messages.

    Raises:
        UserError: The archive is damaged or cut off. Images before the damage were yielded.
    """
    try:
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header) as archive:
            while (header := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps a header per member
                if is_image(header.name) and not header.isdir():
                    yield _member(archive, header, name)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name}: the archive is damaged or cut off ({reason}). Images before it were inspected. Copy it again."
        ) from error
    except Exception as error:  # zlib.error and other errors of compressed data
        raise UserError(f"{name}: the archive cannot be unpacked ({error}). Copy it again.") from error


def is_image(name: str) -> bool:
    """Returns whether a member has an image's suffix and is not hidden (such as `._1.png`, which macOS adds)."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _member(archive: tarfile.TarFile, header: tarfile.TarInfo, name: str) -> Member:
    whole = f"{name}/{header.name}"
    facts = header.name, header.size, int(header.mtime * 10**9)
    if not header.isreg():
        return Member(*facts, None, f"{whole}: is a link or a device, not a file. Store the image itself.")
    if header.size > LARGEST:
        return Member(*facts, None, f"{whole}: has {header.size:,} bytes; at most {LARGEST:,} are read.")
    content = archive.extractfile(header)
    assert content is not None
    data = content.read()
    if len(data) < header.size:
        raise tarfile.ReadError(f"{header.name} is cut off")
    return Member(*facts, data)
