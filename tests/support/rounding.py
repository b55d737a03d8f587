"""Limits that hold on every processor: from float64 runs of our own code, not from results of one machine.

Float32 results differ between processors, numbers of threads and libraries, since sums are added up in another order.
By how much follows from the computation: a small difference of large numbers is known less well than a sum of positive
ones. So the code is run in float64: once exactly, and some times with each operation's result off by what float32 would
round away, at random (Monte Carlo arithmetic). How far these runs scatter about the exact one is how well float32 can
know a result. They are seeded and in float64, so that a limit is the same on every processor. A fault of the code
changes all runs alike: it moves them away from the recorded numbers, and widens no limit.

`make limits` does these runs, holds the exact one against the recorded numbers too, and writes each array's scatter to
`golden/limits.json`. The tests run in float32 alone.
"""

import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.recipe import GOLDEN

LIMITS = GOLDEN / "limits.json"
DERIVE = "AFCLIP_DERIVE_LIMITS"  # the environment variable that `make limits` sets
UNIT = 2.0**-24  # what rounding to float32 changes at most, of a value
SUM = 4.0  # units that a sum may be off: its partial sums are rounded too
RUNS = 8  # with random roundings
# Times their largest deviation: how far float32 results of two codes may lie apart. A normally distributed value is off
# by 4 standard deviations once in 16,000 cases, so two by 5.7 together; the largest of 8 reaches 1 in 95 of 100 arrays.
FACTOR = 6.0
WORST = 2e-2  # what float32 knows no better than this, of the largest value of its array, would test nothing
# what only moves or chooses values rounds nothing
MOVES = {
    *("_to_copy", "clone", "copy", "cat", "stack", "index", "index_select", "gather", "scatter", "constant_pad_nd"),
    *(
        "embedding",
        "repeat",
        "flip",
        "roll",
        "where",
        "masked_fill",
        "amax",
        "amin",
        "max",
        "min",
        "maximum",
        "minimum",
    ),
    *(
        "topk",
        "kthvalue",
        "sort",
        "relu",
        "clamp",
        "clamp_min",
        "clamp_max",
        "abs",
        "neg",
        "nan_to_num",
        "max_pool2d_with_indices",
    ),
    *("select_backward", "slice_backward", "index_put", "value_selecting_reduction_backward"),
}
OFF = 2 * torch.rand(1_000_003, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
ROUNDED, ROUNDED_SUM = 1 + UNIT * OFF, 1 + SUM * UNIT * OFF
EXACT: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

Module = TypeVar("Module", bound=nn.Module)
Check = Callable[..., None]  # of a tensor, its key, and the rows of the recorded array that it is compared with
Results = list[tuple[str, Tensor, Any]]  # key, what was found, its rows of the recorded array


class _Float64(TorchDispatchMode):
    """Computes float32 code in float64, including casts to float32; 16-bit roundings stay.

    Args:
        seed: Seed of random roundings; `None` for none.
    """

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.starts = None if seed is None else random.Random(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        # of views, and of what is written to, no copy may be made
        in_place = schema.is_mutable or any(value.alias_info for value in schema.returns)
        convert = _without_float32 if in_place else _in_float64
        results = func(*_each(convert, args), **{name: _each(convert, value) for name, value in (kwargs or {}).items()})
        if in_place or self.starts is None or schema.name.removeprefix("aten::") in MOVES:
            return results
        factors = ROUNDED if torch.Tag.pointwise in func.tags else ROUNDED_SUM
        return _each(lambda value: self._rounded(value, factors), results)

    def _rounded(self, value: Any, factors: Tensor) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        assert self.starts is not None
        count = value.numel()
        if count > len(factors):
            factors = factors.repeat(-(-count // len(factors)))
        start = self.starts.randrange(len(factors) - count + 1)
        off = factors[start : start + count]
        off, first = off.view(value.shape), value.flatten()[:16]
        if torch.equal(first, first.float().double()):  # float32 holds some exactly, such as a mask's mean over a cell
            off = torch.where(value == value.float(), 1.0, off)
        return value.mul_(off)


class _KeepFloat64(TorchFunctionMode):
    """Makes `float()` return a float64 tensor itself, like a float32 tensor: some code writes to it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **(kwargs or {}))


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)([_each(function, one) for one in value])
    return function(value)


def _without_float32(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _in_float64(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else _without_float32(value)


@contextmanager
def float64(seed: int | None = None) -> Iterator[None]:
    """Runs the block in float64, with random roundings if seeded. Modules from outside must be `doubled`."""
    default, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # the networks are tiny
    try:
        with _KeepFloat64(), _Float64(seed):
            yield
    finally:
        torch.set_default_dtype(default)
        torch.set_num_threads(threads)


def doubled(module: Module) -> Module:
    """Returns a copy of a module in float64, made once."""
    if module not in EXACT:
        EXACT[module] = deepcopy(module).double()
    return EXACT[module]  # type: ignore[return-value]


def compare(
    body: Callable[[Any, Check], None], backbone: nn.Module, file: str, prefixes: Sequence[str] = ("",)
) -> None:
    """Compares results with recorded ones, within the precision of float32.

    Args:
        body: Computes with a backbone, and calls `check(actual, key, rows)` for each result, to be compared with these
            rows of the recorded array. It builds all modules but the backbone: `make limits` runs it in float64 too.
        backbone: Backbone in float32.
        file: Recorded arrays, in `golden/`.
        prefixes: Prefixes of the keys in the file; the first existing one counts.

    Raises:
        AssertionError: A result differs by more than `FACTOR` times what rounding may change in it.
    """
    stored = np.load(GOLDEN / file)
    found = _run(body, backbone)  # first in float32: so is then what the code caches
    names, expected = [], []
    for key, actual, rows in found:
        recorded = stored[next(prefix + key for prefix in prefixes if prefix + key in stored)]
        expected.append(torch.from_numpy(np.asarray(recorded))[rows].double())
        assert actual.shape == expected[-1].shape, key
        names.append(f"{file.removesuffix('.npz')}/{prefixes[0]}{re.sub('[0-9]+$', '#', key)}")
    runs = {"float32": found}
    if DERIVE in os.environ:
        runs["float64"], scatter = _scatter(body, doubled(backbone), names, expected)
        _write(scatter)
    scatter = json.loads(LIMITS.read_text())
    for run, results in runs.items():
        for name, (key, actual, _), value in zip(names, results, expected, strict=True):
            limit = FACTOR * scatter[name]
            assert limit < WORST, f"{name}: float32 knows it to {limit:.1e} only"
            torch.testing.assert_close(
                actual.double(),
                value,
                rtol=0,
                atol=limit * _largest(value),
                msg=lambda text, key=key, run=run, limit=limit: f"{key} in {run}, limit {limit:.1e}: {text}",
            )


def _run(body: Callable[[Any, Check], None], backbone: nn.Module) -> Results:
    found: Results = []
    body(backbone, lambda actual, key, rows=...: found.append((key, actual.detach().clone(), rows)))
    return found


def _scatter(
    body: Callable[[Any, Check], None], backbone: nn.Module, names: Sequence[str], expected: Sequence[Tensor]
) -> tuple[Results, dict[str, float]]:
    """Returns the exact run, and the relative distance of runs with random roundings from it.

    Arrays whose names differ in their last number alone are taken together.
    """
    with float64():
        exact = _run(body, backbone)
    scatter = dict.fromkeys(names, 2 * UNIT)
    for seed in range(RUNS):
        with float64(seed):
            noisy = _run(body, backbone)
        for name, value, (_, one, _), (_, other, _) in zip(names, expected, noisy, exact, strict=True):
            scatter[name] = max(scatter[name], (one - other).abs().max().item() / _largest(value))
    return exact, scatter


def _largest(value: Tensor) -> float:
    return value.abs().max().item()


def _write(scatter: Mapping[str, float]) -> None:
    known = json.loads(LIMITS.read_text()) if LIMITS.exists() else {}
    for name, value in scatter.items():
        known[name] = max(known.get(name, 0.0), float(f"{value:.1e}"))
    LIMITS.write_text(json.dumps(known, indent=0, sort_keys=True) + "\n")
