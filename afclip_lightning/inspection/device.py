"""The device that a model runs on."""

import torch

from afclip_runtime.errors import UserError


def device_of(name: str) -> torch.device:
    """Returns an available device. `auto` chooses a GPU if there is one.

    Raises:
        UserError: The device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).item()  # fails on `meta`, which holds no values
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"device {name!r} is not available ({str(error).splitlines()[0]}). Use cpu or auto.") from error
