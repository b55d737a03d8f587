"""Downloads of weights into a folder, with progress, resuming and a check of their hash."""

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import requests
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from afclip_lightning.backbones.sources import LOCAL_WAY, Repository, downloading
from afclip_runtime.errors import WeightsError, shown
from afclip_runtime.files import check_writable, only_writer_of

PART = 2**20  # bytes per read
TRIES = 5  # consecutive tries without a new byte
WAIT = 2.0  # seconds before the second try; doubled before each further one
TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
        url: Address of the file.
        name: Name of the file there.
        size: Size in bytes. `None` if the server does not say.
        sha256: SHA-256 hash. `None` if it is unknown.
        headers: Headers of the request, such as authorisation.
    """

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


def remote_of(place: Repository) -> Remote:
    """Returns the file of weights of a repository of the hub, as the hub describes it.

    Raises:
        WeightsError: The hub cannot be reached, or the repository has no such file.
    """
    with downloading(place.url):
        for file in place.files:
            url = hf_hub_url(place.name, file, revision=place.revision)
            try:
                found = get_hf_file_metadata(url)
            except EntryNotFoundError:
                continue
            digest = found.etag if found.etag and len(found.etag) == 64 else None  # the SHA-256 for large files
            return Remote(url, file, found.size, digest, build_hf_headers())
    raise WeightsError(f"{place.name}: the repository has no file named {' or '.join(place.files)}. {LOCAL_WAY}")


def download(remote: Remote, path: Path, progress: bool = True) -> None:
    """Downloads a file atomically: the file at `path` is always complete.

    The download goes to `PATH.part` first. An interrupted connection is resumed, and so is the part of an earlier call.

    Args:
        remote: The file.
        path: Destination.
        progress: Whether to show a progress bar.

    Raises:
        WeightsError: The file is not available, or is not the expected one. The part is kept if it can be resumed.
        UserError: The file cannot be written, or another process downloads it.
    """
    check_writable(path)
    with only_writer_of(path):
        _download(remote, path, progress)


def _download(remote: Remote, path: Path, progress: bool) -> None:
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    with tqdm(total=remote.size, initial=have, unit="B", unit_scale=True, desc=path.name, disable=not progress) as bar:
        failed, wait = 0, WAIT
        while remote.size is None or have < remote.size:
            try:
                _fetch(remote, part, have, bar)
                break
            except (requests.RequestException, HTTPError) as error:
                reached = part.stat().st_size if part.is_file() else 0
                failed = 0 if reached > have else failed + 1
                if failed == TRIES or _is_final(error):
                    raise WeightsError(
                        f"{remote.url}: could not be downloaded ({_reason(error)}); {reached:,} bytes are kept in "
                        f"{shown(part)}. Run the command again to go on, or download it elsewhere. {LOCAL_WAY}"
                    ) from error
                have = reached
                time.sleep(wait if failed else 0)
                wait = wait * 2 if failed else WAIT
            except OSError as error:
                raise WeightsError(f"{shown(part)}: cannot be written ({error.strerror or error}).") from error
    _check(remote, part)
    part.replace(path)


def _fetch(remote: Remote, part: Path, have: int, bar: "tqdm[None]") -> None:
    """Appends the missing bytes to the part. If the server cannot resume, the part is downloaded from the start."""
    headers = {**remote.headers, "Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if have and answer.status_code == 416:  # the part is already complete
            return
        answer.raise_for_status()
        resumed = have > 0 and answer.status_code == 206
        if have and not resumed:
            bar.reset(total=remote.size)
        expected = int(answer.headers.get("Content-Length", -1))
        received = 0
        with part.open("ab" if resumed else "wb") as file:
            while content := answer.raw.read1(PART):  # `iter_content` drops the bytes before an interruption
                file.write(content)
                received += len(content)
                bar.update(len(content))
        if 0 <= expected != received:
            raise requests.ConnectionError(f"ended after {received:,} of {expected:,} bytes")


def _check(remote: Remote, part: Path) -> None:
    """Rejects a download of another size or content, and removes it, because it cannot be resumed."""
    size = part.stat().st_size if part.is_file() else 0
    what = ""
    if remote.size is not None and size != remote.size:
        what = f"has {size:,} bytes in place of {remote.size:,}"
    elif remote.sha256 is not None:
        with part.open("rb") as file:
            digest = sha256(file)
        what = "" if digest == remote.sha256 else f"has the SHA-256 {digest[:16]}… in place of {remote.sha256[:16]}…"
    if what:
        with suppress(OSError):
            part.unlink()
        raise WeightsError(f"{remote.url}: what was downloaded {what}, and was removed. Run the command again.")


def _is_final(error: Exception) -> bool:
    """Returns whether a retry is useless: the server has answered that the file is not available."""
    answer = getattr(error, "response", None)
    return answer is not None and 400 <= answer.status_code < 500 and answer.status_code != 429


def _reason(error: Exception) -> str:
    answer = getattr(error, "response", None)
    return f"HTTP {answer.status_code}" if answer is not None else type(error).__name__


def sha256(file: BinaryIO) -> str:
    """Returns the SHA-256 of the rest of an open file, in hexadecimal digits."""
    digest = hashlib.sha256()
    while part := file.read(PART):
        digest.update(part)
    return digest.hexdigest()
