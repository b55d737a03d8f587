"""The user's own prompts from a file: states and templates in any language that the text tower knows."""

from dataclasses import dataclass, fields
from pathlib import Path

from afclip_lightning.discovery.configs import find_config
from afclip_runtime.errors import UserError
from afclip_runtime.files import read_yaml

SUFFIXES = (".yaml", ".yml")
REMEDY = "It must hold `normal`, `abnormal` and `templates`, a list of texts each: correct the file."


@dataclass(frozen=True)
class OwnPrompts:
    """Prompts in place of the tables of `templates`. Each text has `{}` exactly once.

    Attributes:
        normal: Normal states with the class name at `{}` (`完好的{}`).
        abnormal: Abnormal states with the class name at `{}` (`{} mit Fehler`).
        templates: Sentences with the state at `{}` (`ein Foto von {}`).
    """

    normal: list[str]
    abnormal: list[str]
    templates: list[str]


def is_file(prompts: str) -> bool:
    """Returns whether an argument names a file of prompts rather than a table."""
    return Path(prompts).suffix in SUFFIXES


def read_prompts(path: str | Path) -> OwnPrompts:
    """Returns the prompts of a YAML file.

    Raises:
        UserError: The file cannot be read, a list is empty, or a text does not have `{}` exactly once.
    """
    prompts = read_yaml(find_config(path), OwnPrompts, remedy=REMEDY)
    for name in (field.name for field in fields(prompts)):
        texts: list[str] = getattr(prompts, name)
        if not texts:
            raise UserError(f"{path}: `{name}` is empty. {REMEDY}")
        for text in texts:
            if text.count("{}") != 1 or text.count("{") != 1 or text.count("}") != 1:
                raise UserError(
                    f"{path}: {name}: {text!r} must hold {{}} once, where the class name or the state stands."
                )
    return prompts
