"""PyTorch's zip archives: checksums are verified, and the content is read without running any of its code."""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from afclip_runtime.errors import UserError, shown
from afclip_runtime.files import open_regular


def read_archive(path: str | Path, error: type[UserError]) -> Any:
    """Returns the content of a file of `torch.save`: tensors, on the CPU, and plain values. Other objects are rejected.

    Args:
        path: A zip archive of `torch.save`.
        error: Class of the error that is raised.

    Raises:
        UserError: The file cannot be opened, is not such an archive, is damaged, or holds other objects.
    """
    return _read(path, error, lambda file: torch.load(file, map_location="cpu", weights_only=True))


def read_modules(path: str | Path, error: type[UserError], classes: Collection[str]) -> Any:
    """Returns the content of a file of `torch.save` that contains whole pickled modules. See `read_archive`.

    Each object of the named classes becomes a `StoredModule`, which holds the object's state and has no behaviour. The
    classes themselves are not imported. `torch.load` is not used: its `weights_only` takes stand-ins from a list of the
    whole process only, and its messages advise to trust the file.

    Args:
        path: A zip archive of `torch.save`.
        error: Class of the error.
        classes: Full names of the classes.

    Raises:
        UserError: See `read_archive`. The message names other classes that the file needs.
    """
    return _read(path, error, lambda file: _unpickled(file, lambda name: name in classes))


def _read(path: str | Path, error: type[UserError], read: Callable[[BinaryIO], Any]) -> Any:
    with open_regular(path, error=error) as file:
        if not zipfile.is_zipfile(file):
            raise error(f"{shown(path)}: is not an archive of torch.save, or its end is missing. {_RESTORE}")
        check_archive(file, path, error)
        file.seek(0)
        try:
            return read(file)
        except Exception as problem:  # errors of many classes
            raise error(f"{shown(path)}: {reason(problem)}. {_RESTORE}") from problem


def load_saved(path: str | Path, mmap: bool) -> Any:
    """Returns the content of a file of `torch.save`, a zip archive or the format until 2020.

    `check_archive` checks archives.

    Args:
        path: The file.
        mmap: Whether the tensors of an archive are memory-mapped.

    Raises:
        Exception: The file is damaged, or holds other objects than tensors and plain values. The class varies.
    """
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


_RESTORE = "Restore the file, or name another."
_MOST_CODE = 2**26  # size limit of a code file in a TorchScript archive, in bytes
_MOST_PICKLE = 2**22  # size limit of the pickle of an archive, in bytes
_DEEPEST, _MOST_MODULES = 64, 100_000


def check_archive(file: BinaryIO, path: str | Path, error: type[UserError]) -> None:
    """Compares the content of a zip archive with its checksums, which torch ignores.

    Args:
        file: The open archive.
        path: Its name for messages.
        error: Class of the error that is raised.

    Raises:
        UserError: The archive is damaged, or holds entries that torch does not write.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = file.seek(0, 2)
            entries = archive.infolist()
            large = [entry for entry in entries if entry.file_size > entry.compress_size]  # code of TorchScript
            if any(entry.filename.split("/")[1:2] != ["code"] or entry.file_size > _MOST_CODE for entry in large):
                raise error(f"{shown(path)}: is a compressed zip file, which torch never writes. {_RESTORE}")
            if sum(entry.compress_size for entry in entries) > size:
                raise error(f"{shown(path)}: is damaged: parts of it overlap. {_RESTORE}")
            if len({entry.filename for entry in entries}) < len(entries):
                raise error(f"{shown(path)}: is damaged: several parts have the same name. {_RESTORE}")
            if (bad := archive.testzip()) is not None:
                raise error(f"{shown(path)}: is damaged: the checksum of {shown(bad)} differs. {_RESTORE}")
    except (OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile) as problem:
        raise error(f"{shown(path)}: is damaged ({shown(str(problem))}). {_RESTORE}") from problem


def reason(problem: BaseException) -> str:
    """Returns the reason of a failed read, without torch's advice to trust the file."""
    if isinstance(problem, _RefusedError):
        return f"holds {shown(problem)}, which reading would run: only tensors and plain values are read"
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

    The code in the archive is not run, as `torch.jit.load` would do to restore its modules.

    Args:
        file: The open archive.

    Raises:
        Exception: The archive is damaged or of another kind. The class varies.
    """
    return tensors_of(_unpickled(file, lambda name: name.split(".")[0] == "__torch__"))


class StoredModule:
    """The state of a module of the archive, without its behaviour."""

    held: Any = None

    def __setstate__(self, state: Any) -> None:
        self.held = state

    @property
    def parts(self) -> Mapping[str, Any]:
        """Returns the tensors and submodules by name. `nn.Module` keeps them in nested dictionaries.

        Raises:
            ValueError: They are stored in an unknown way.
        """
        if not isinstance(self.held, Mapping):
            raise ValueError("a module stores its tensors in an unknown way")
        if "_modules" not in self.held:
            return self.held
        parts: dict[str, Any] = {}
        for kind in ("_parameters", "_buffers", "_modules"):
            if not isinstance(held := self.held.get(kind, {}), Mapping):
                raise ValueError("a module stores its tensors in an unknown way")
            parts |= held
        return parts


class _RefusedError(pickle.UnpicklingError):
    """An archive refers to a name that is not allowed."""


def _unpickled(file: BinaryIO, is_module: Callable[[str], bool]) -> Any:
    """Returns the content of an archive of torch, with tensors on the CPU.

    Args:
        file: The open archive.
        is_module: Function that says whether a full name is that of a class to be read as a `StoredModule`.

    Raises:
        Exception: The archive is damaged or of another kind. The class varies.
    """
    with zipfile.ZipFile(file) as archive:
        root = next(name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]).split("/")[0]
        entry = archive.getinfo(f"{root}/data.pkl")
        if entry.file_size > _MOST_PICKLE:
            raise ValueError(f"its data.pkl has {entry.file_size:,} bytes; at most {_MOST_PICKLE:,} are read")
        content = archive.read(entry)
        _check_places(content)
        return _Unpickler(io.BytesIO(content), archive, root, is_module).load()


def _check_places(content: bytes) -> None:
    """Rejects a pickle with a memo index beyond its own length, which would allocate all entries before it.

    Raises:
        ValueError: There is such an index, or the pickle is truncated or damaged.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise ValueError("its data.pkl is damaged")


class _Unpickler(pickle.Unpickler):
    """Builds tensors, containers and `StoredModule`s. Every other name is rejected."""

    def __init__(self, content: Any, archive: zipfile.ZipFile, root: str, is_module: Callable[[str], bool]) -> None:
        super().__init__(content)
        self.archive = archive
        self.root = root
        self.is_module = is_module
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}  # many tensors may be views of one

    def find_class(self, module: str, name: str) -> Any:
        if self.is_module(f"{module}.{name}"):
            return StoredModule
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, size = pid
        if (key, dtype) in self.storages:
            return self.storages[key, dtype]
        entry = self.archive.getinfo(f"{self.root}/data/{key}")
        if kind != "storage" or not isinstance(dtype, torch.dtype) or size * dtype.itemsize != entry.compress_size:
            raise ValueError(f"the storage {key} does not have the stated size")
        storage = torch.empty(size, dtype=dtype)
        with self.archive.open(entry) as content:
            content.readinto(storage.view(torch.uint8).numpy())  # type: ignore[attr-defined]
            content.read(1)  # at the end, the checksum is compared
        self.storages[key, dtype] = storage
        return storage


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "set"): set,  # its name in pickle protocol 2
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
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


def tensors_of(module: Any) -> dict[str, Tensor]:
    """Returns the tensors of a stored module and of its submodules, by name.

    Raises:
        ValueError: The object is not a module, stores its tensors in an unknown way, contains too many modules, or
            contains itself.
    """
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors, count())
    return tensors


def _collect(module: Any, prefix: str, tensors: dict[str, Tensor], visits: Iterator[int]) -> None:
    """Adds the tensors of a module and of its submodules, by name."""
    if not isinstance(module, StoredModule):
        raise ValueError("a module stores its tensors in an unknown way")
    if prefix.count(".") > _DEEPEST or next(visits) > _MOST_MODULES:  # modules may contain each other
        raise ValueError(f"modules are nested more than {_DEEPEST} deep, or are more than {_MOST_MODULES:,}")
    for name, part in module.parts.items():
        if isinstance(part, Tensor):
            tensors[f"{prefix}{name}"] = part
        elif isinstance(part, StoredModule):
            _collect(part, f"{prefix}{name}.", tensors, visits)


def is_finite(tensor: Tensor) -> bool:
    """Returns whether every value of a tensor is finite."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.itemsize == 1:  # torch cannot compare 8-bit values
        tensor = tensor.float()
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())
