"""Conversion of scores of any numeric type to tensors, in a precision that keeps their order."""

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray

FLOAT32, FLOAT64, ROUNDED = range(3)
"""Precision in which scores are ranked. `ROUNDED` is float64 after rounding, which may have made some scores equal."""

IN_FLOAT32 = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.bool})
IN_FLOAT32 |= {torch.uint8, torch.int8, torch.int16, torch.uint16}
"""Types of which float32 holds every number."""


def to_tensor(name: str, value: Array) -> Tensor:
    """Returns an array, of any byte order and strides, read-only or not, as a tensor.

    Raises:
        ValueError: It does not hold numbers, or its numbers have more than 64 bits.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            raise ValueError(f"{name}: expected numbers of up to 64 bits, got {value.dtype}")
        native = np.dtype(f"{value.dtype.kind}{value.dtype.itemsize}")  # NumPy has two such types of 64 bits
        value = value.astype(native, order="C", copy=not value.flags.writeable).view(native)
    return torch.as_tensor(value).detach()


def ranked(values: Tensor) -> tuple[Tensor, int]:
    """Returns scores in float32, or in float64 if float32 cannot represent all of them, and the precision used.

    Rounding may make scores equal, but never reverses their order. `ROUNDED` says that some may have become equal.
    """
    if values.dtype in IN_FLOAT32:
        return values.float(), FLOAT32
    wide = values.double()
    if not values.is_floating_point() and wide.abs().max() > 2**53:
        return wide, ROUNDED
    narrow = wide.float()
    return (narrow, FLOAT32) if bool((narrow == wide).all()) else (wide, FLOAT64)
