"""Interpolation in configs, such as `${model.init_args.temperature}` and `${oc.env:NAME}`, after all are merged."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afclip_runtime.errors import UserError


def resolve(config: Mapping[str, Any], part: str | None = None) -> dict[str, Any]:
    """Returns a config with its references filled in. They name keys from its root, or relative keys (`${.key}`).

    Args:
        config: Config of plain values. References in values that were replaced are never looked up.
        part: Key of the part to return; the whole config by default. Other parts are read only if it refers to them.

    Raises:
        UserError: A reference names no key, is circular or cannot be read.
    """
    try:
        tree = OmegaConf.create(dict(config))
        resolved: dict[str, Any] = OmegaConf.to_container(tree[part] if part else tree, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rpartition("raised while resolving interpolation: ")[2].strip('"')
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{key}{reason}. Correct the reference, or give a value in its place.") from error
    return resolved
