"""The YAML files of a benchmark: its matrix, and the configs that it names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afclip_lightning.discovery.configs import find_config
from afclip_runtime import files
from afclip_runtime.errors import UserError


def read_yaml(path: Path) -> Any:
    """Returns what a config file says, with `${...}` in it resolved.

    Raises:
        UserError: It cannot be read.
    """
    content = load_yaml(path)
    with reading(path):
        return OmegaConf.to_container(content, resolve=True)


def load_yaml(path: Path, remedy: str = files.REMEDY) -> DictConfig:
    """Returns what a config file says, as it stands there.

    Args:
        path: The file.
        remedy: What to do if it is none; the end of the message.

    Raises:
        UserError: It cannot be read.
    """
    content = files.read_yaml(find_config(path), dict[str, Any], remedy=remedy)
    with reading(path):
        return OmegaConf.create(content)


@contextmanager
def reading(*sources: Path | str) -> Iterator[None]:
    """Turns what goes wrong in a block into one message that names what was read.

    Raises:
        UserError: Something went wrong.
    """
    try:
        yield
    except (OSError, yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        key = getattr(error, "full_key", None)
        reason = f"{key}: {str(error).splitlines()[0]}" if key else " ".join(str(error).split())
        raise UserError(f"{', '.join(map(str, sources))}: cannot be read ({reason}).") from error
