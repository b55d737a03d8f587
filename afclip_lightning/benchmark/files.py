"""Reads the YAML files of a benchmark: its matrix, and the configs that it names."""

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
    """Returns the content of a config file, with each `${...}` resolved.

    Raises:
        UserError: The file cannot be read.
    """
    content = load_yaml(path)
    with reading(path):
        return OmegaConf.to_container(content, resolve=True)


def load_yaml(path: Path, remedy: str = files.REMEDY) -> DictConfig:
    """Returns the content of a config file, unresolved.

    Args:
        path: The file.
        remedy: End of the message if the file is not a config.

    Raises:
        UserError: The file cannot be read.
    """
    content = files.read_yaml(find_config(path), dict[str, Any], remedy=remedy)
    with reading(path):
        return OmegaConf.create(content)


@contextmanager
def reading(*sources: Path | str) -> Iterator[None]:
    """Turns any error in a block into one message that names the sources.

    Raises:
        UserError: The block raised an error.
    """
    try:
        yield
    except (OSError, yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        key = getattr(error, "full_key", None)
        reason = f"{key}: {str(error).splitlines()[0]}" if key else " ".join(str(error).split())
        raise UserError(f"{', '.join(map(str, sources))}: cannot be read ({reason}).") from error
