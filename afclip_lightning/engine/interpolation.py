"""Interpolation: `${model.init_args.temperature}`, `${oc.env:NAME}` in configs, filled in once all parts are merged."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afclip_runtime.errors import UserError


def resolve(config: Mapping[str, Any], part: str | None = None) -> dict[str, Any]:
    """Returns a config with its references filled in; they name keys from its root, or relative ones (`${.key}`).

    Args:
        config: Of plain values. What has been replaced in it is never looked up.
        part: Key of the part to return; all of it by default. The rest is looked up only where that refers to it.

    Raises:
        UserError: A reference names nothing, leads back to itself or cannot be read.
    """
    try:
        tree = OmegaConf.create(dict(config))
        resolved: dict[str, Any] = OmegaConf.to_container(tree[part] if part else tree, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rpartition("raised while resolving interpolation: ")[2].strip('"')
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{key}{reason}. Mend the reference, or give a value in its place.") from error
    return resolved
