"""Files at URLs (s3, gs, http …), by fsspec, an optional dependency."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from afclip_runtime.errors import MissingPackageError, UserError, install_extra, shown

ATTEMPTS, PAUSE = 3, 0.5  # attempts per request; seconds before the second attempt, doubled before the third
READ_AHEAD = 2**23  # bytes per fetch of an archive
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)  # permanent errors


class UrlFile(NamedTuple):
    """A file at a URL, with its size in bytes and the time of its last change in nanoseconds, if known."""

    url: str
    size: int | None
    mtime_ns: int | None


def is_url(text: str) -> bool:
    """Returns whether a text is a URL. A single letter as scheme (`C:`) is a drive."""
    scheme, mark, _ = text.partition("://")
    return bool(mark) and len(scheme) > 1 and scheme.replace("+", "").replace("-", "").isalnum()


def require_packages(url: str) -> None:
    """Checks that the packages for a URL are installed. An unknown scheme is not checked: its URLs cannot be read.

    Raises:
        MissingPackageError: A package is not installed.
    """
    scheme = url.partition("://")[0].lower()
    try:
        from fsspec.core import get_filesystem_class
        from fsspec.registry import known_implementations
    except ImportError as error:
        raise MissingPackageError(
            f"{scheme}:// is read by fsspec, which is not installed: {install_extra('scale')}."
        ) from error
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        package = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
        package = "aiohttp" if scheme in ("http", "https") else package
        remedy = f": pip install {package}" if package and package != "fsspec" else f" ({error})"
        raise MissingPackageError(f"{scheme}:// is read by a package that is not installed{remedy}.") from error
    except ValueError:
        pass  # an unknown scheme


def suffix_source(url: str) -> str:
    """Returns the path of a URL, which ends with the suffix of the file; for http without the query."""
    return urlsplit(url).path if url.startswith(("http://", "https://")) else url


def describe(url: str) -> UrlFile:
    """Returns a file with its size and time; both are `None` if the server does not tell them.

    Raises:
        UserError: There is no such file, or it cannot be reached.
    """
    system, path = _system(url)
    with _explained(url):
        return _file(url, _again(lambda: system.info(path)))


def walk(url: str) -> Iterator[UrlFile] | None:
    """Returns the files of a folder and all folders below it, sorted by name, without hidden files.

    Returns `None` if it is not a folder.

    Raises:
        UserError: The URL cannot be reached. Also raised during the iteration.
    """
    system, path = _system(url)
    with _explained(url):
        if not _again(lambda: system.isdir(path)):
            return None
    return _walk(system, path, url)


def _walk(system: Any, path: str, url: str) -> Iterator[UrlFile]:
    with _explained(url):
        entries = sorted(_again(lambda: system.ls(path, detail=True)), key=lambda entry: entry["name"])
    for entry in entries:
        name = entry["name"].rstrip("/")
        if name == path.rstrip("/") or name.rpartition("/")[2].startswith("."):
            continue
        whole = _url_of(system, name, url, path)
        if entry["type"] == "directory":
            yield from _walk(system, name, whole)
        else:
            yield _file(whole, entry)


def matching(url: str) -> list[UrlFile]:
    """Returns the files that match a pattern (`*`) at a URL, sorted by name.

    Raises:
        UserError: It cannot be reached.
    """
    system, path = _system(url)
    with _explained(url):
        found = _again(lambda: system.glob(path, detail=True))
    return [_file(_url_of(system, name, url, path), found[name]) for name in sorted(found)]


def _url_of(system: Any, name: str, url: str, path: str) -> str:
    """Returns the URL of a file by its name in a file system.

    Names at ftp, sftp, smb or hdfs lack the host. The URL has the host of another URL.

    Args:
        system: The file system.
        name: Name of the file in it.
        url: URL of a folder or pattern in the same file system.
        path: Name of that folder or pattern in the file system.
    """
    scheme, _, rest = url.partition("://")
    host, _, rest = rest.partition("/")
    if rest.strip("/") == path.strip("/"):
        return f"{scheme}://{host}/{name.lstrip('/')}"
    return str(system.unstrip_protocol(name))


def fetch(url: str) -> bytes:
    """Returns the content of a file.

    Raises:
        UserError: There is no such file, or it cannot be reached.
    """
    system, path = _system(url)
    with _explained(url):
        return bytes(_again(lambda: system.cat_file(path)))


@contextmanager
def opened(url: str) -> Iterator[IO[bytes]]:
    """Opens a file for sequential reading.

    Raises:
        UserError: There is no such file, or it cannot be reached.
    """
    system, path = _system(url)
    with _explained(url):
        file = _again(lambda: system.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead"))
    with file:
        yield file


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Converts errors of all file systems, each of which has its own classes, into a `UserError`.

    Raises:
        UserError: The file cannot be read. The message names the URL.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{shown(url)} does not exist.") from error
    except ImportError as error:
        raise UserError(f"{shown(url)}: cannot be read ({error}).") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{shown(url)}: cannot be read ({shown(reason)}). Check the address, the network and the rights."
        ) from error


def _again(request: Any) -> Any:
    """Returns the answer to a request. The request is repeated after a temporary error."""
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except Exception as error:
            status = getattr(error, "status", 500)  # HTTP: 4xx is permanent, except 429, too many requests
            lasts = isinstance(error, LASTING) or (400 <= status < 500 and status != 429)
            if lasts or attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError("not reached")


def _system(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path of the file in it.

    Raises:
        UserError: The packages for the scheme are not installed, or there are none.
    """
    require_packages(url)
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
    except Exception as error:  # unknown scheme, no credentials: each file system has its own classes of errors
        scheme, reason = url.partition("://")[0].lower(), shown(" ".join(str(error).split())[:200])
        raise UserError(f"{shown(url)}: {scheme}:// cannot be used ({reason}).") from error
    return system, str(path)


def _file(url: str, info: dict[str, Any]) -> UrlFile:
    size = info.get("size")
    times = (info.get(key) for key in ("mtime", "LastModified", "last_modified", "updated", "created"))
    return UrlFile(url, size if isinstance(size, int) else None, _nanoseconds(next(filter(None, times), None)))


def _nanoseconds(when: Any) -> int | None:
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when.replace("Z", "+00:00"))
        except ValueError:
            return None
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    return int(when * 10**9) if isinstance(when, (int, float)) else None
