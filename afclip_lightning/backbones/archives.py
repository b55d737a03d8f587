"""PyTorch's zip archives: checked before they are believed, and read without running anything that they hold."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from afclip_lightning.errors import UserError, shown
from afclip_lightning.files import open_regular


def read_archive(path: str | Path, error: type[UserError]) -> Any:
    """Returns what `torch.save` wrote: tensors, on the CPU, and plain values; nothing else is made of the file.

    Args:
        path: A zip archive of `torch.save`.
        error: Class of the error.

    Raises:
        UserError: The file cannot be opened, is no such archive, is damaged, or holds other objects.
    """
    with open_regular(path, error=error) as file:
        if not zipfile.is_zipfile(file):
            raise error(f"{shown(path)}: is no archive of torch.save, or its end is missing. {_RESTORE}")
        check_archive(file, path, error)
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as problem:  # of many classes
            raise error(f"{shown(path)}: {reason(problem)}. {_RESTORE}") from problem


def load_saved(path: str | Path, mmap: bool) -> Any:
    """Returns what `torch.save` wrote, in a zip archive or as it did until 2020; check an archive with `check_archive`.

    Args:
        path: The file.
        mmap: Whether the tensors of an archive are read when they are looked at.

    Raises:
        Exception: It is damaged or holds other objects than tensors and plain values; of many classes.
    """
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


_RESTORE = "Restore the file, or name another."
_MOST_CODE = 2**26  # bytes of a file of code in a TorchScript archive


def check_archive(file: BinaryIO, path: str | Path, error: type[UserError]) -> None:
    """Compares the content of a zip archive with its checksums, which torch does not look at.

    Args:
        file: The archive, open.
        path: Its name for messages.
        error: Class of the error.

    Raises:
        UserError: It is damaged, or holds what torch does not write.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = file.seek(0, 2)
            entries = archive.infolist()
            large = [entry for entry in entries if entry.file_size > entry.compress_size]  # code, in TorchScript's
            if any(entry.filename.split("/")[1:2] != ["code"] or entry.file_size > _MOST_CODE for entry in large):
                raise error(f"{shown(path)}: is a compressed zip file, as torch writes none. {_RESTORE}")
            if sum(entry.compress_size for entry in entries) > size:
                raise error(f"{shown(path)}: is damaged: parts of it overlap. {_RESTORE}")
            if len({entry.filename for entry in entries}) < len(entries):
                raise error(f"{shown(path)}: is damaged: parts of it have one name. {_RESTORE}")
            if (bad := archive.testzip()) is not None:
                raise error(f"{shown(path)}: is damaged: the checksum of {shown(bad)} differs. {_RESTORE}")
    except (OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile) as problem:
        raise error(f"{shown(path)}: is damaged ({shown(str(problem))}). {_RESTORE}") from problem


def reason(problem: BaseException) -> str:
    """Returns what was wrong with tensors that could not be read, without torch's advice to trust the file."""
    if isinstance(problem, pickle.UnpicklingError):
        return "holds other objects than tensors and plain values, which are not read, or is damaged"
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    lines = [line if len(line) <= 240 else f"{line[:240]}…" for line in lines]  # torch names every missing tensor
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(lines[:3]).rstrip(".") + more if lines else type(problem).__name__


def is_torchscript(path: Path) -> bool:
    """Returns whether the file is a TorchScript archive, the form in which OpenAI publishes CLIP."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def read_torchscript(file: BinaryIO) -> dict[str, Tensor]:
    """Returns the tensors of a TorchScript archive by name: parameters, buffers and other attributes, on the CPU.

    The archive's code stays unread: `torch.jit.load` would run what it holds to restore its modules.

    Args:
        file: The archive, open.

    Raises:
        Exception: It is damaged or holds something else; of many classes.
    """
    with zipfile.ZipFile(file) as archive:
        root = next(name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]).split("/")[0]
        with archive.open(f"{root}/data.pkl") as content:
            module = _Unpickler(content, archive, root).load()
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors, depth=0)
    return tensors


class _Module:
    """Stands for whatever class of the archive: what it held, and nothing that it could do."""

    held: Any = None

    def __setstate__(self, state: Any) -> None:
        self.held = state


class _Unpickler(pickle.Unpickler):
    """Makes tensors and `_Module`s; every other name is refused."""

    def __init__(self, content: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(content)
        self.archive = archive
        self.root = root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is not read")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        entry = self.archive.getinfo(f"{self.root}/data/{key}")
        if kind != "storage" or not isinstance(dtype, torch.dtype) or count * dtype.itemsize != entry.compress_size:
            raise ValueError(f"the storage {key} is not of the size that is named")
        storage = torch.empty(count, dtype=dtype)
        with self.archive.open(entry) as content:
            content.readinto(storage.view(torch.uint8).numpy())  # type: ignore[attr-defined]
            content.read(1)  # at the end, the checksum is compared
        return storage


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ShortStorage"): torch.int16,
    ("torch", "CharStorage"): torch.int8,
    ("torch", "ByteStorage"): torch.uint8,
    ("torch", "BoolStorage"): torch.bool,
    **{
        ("torch.jit._pickle", name): _first
        for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
    },
}
"""What the names in an archive stand for here."""


def _collect(value: Any, prefix: str, tensors: dict[str, Tensor], depth: int) -> None:
    """Adds the tensors of a module and of those below it by their names."""
    if depth > 64:
        raise ValueError("modules are nested more than 64 deep")
    if not isinstance(value, _Module) or not isinstance(value.held, dict):
        raise ValueError("a module keeps its tensors in a way of its own")
    for name, part in value.held.items():
        if isinstance(part, Tensor):
            tensors[f"{prefix}{name}"] = part
        elif isinstance(part, _Module):
            _collect(part, f"{prefix}{name}.", tensors, depth + 1)


def is_finite(tensor: Tensor) -> bool:
    """Returns whether every value of a tensor is finite."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.itemsize == 1:  # torch compares no values of 8 bits
        tensor = tensor.float()
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())
