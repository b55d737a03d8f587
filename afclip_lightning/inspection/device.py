"""The device that a model runs on."""

import torch

from afclip_runtime.errors import UserError


def device_of(name: str) -> torch.device:
    """Returns a device that is there; for `auto` a GPU if there is one.

    Raises:
        UserError: It is not.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).item()  # of `meta` there is no number
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"device {name!r} is not there ({str(error).splitlines()[0]}). Use cpu or auto.") from error
