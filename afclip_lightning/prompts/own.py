"""Prompts of one's own, from a file: states and templates in any language that the text tower knows."""

from dataclasses import dataclass, fields
from pathlib import Path

from afclip_runtime.errors import UserError
from afclip_runtime.files import read_yaml

SUFFIXES = (".yaml", ".yml")
REMEDY = "It must hold `normal`, `abnormal` and `templates`, a list of texts each: mend the file."


@dataclass(frozen=True)
class OwnPrompts:
    """What the tables of `templates` hold, in other words. Each text holds `{}` once.

    Attributes:
        normal: Normal states, around the class name (`完好的{}`).
        abnormal: Abnormal states, likewise (`{} mit Fehler`).
        templates: Sentences around a state (`ein Foto von {}`).
    """

    normal: list[str]
    abnormal: list[str]
    templates: list[str]


def is_file(prompts: str) -> bool:
    """Returns whether an argument means a file of prompts, and not the name of a table."""
    return Path(prompts).suffix in SUFFIXES


def read_prompts(path: str | Path) -> OwnPrompts:
    """Returns the prompts of a YAML file.

    Raises:
        UserError: It cannot be read, a list is empty, or a text does not hold `{}` once; names the file and the text.
    """
    prompts = read_yaml(path, OwnPrompts, remedy=REMEDY)
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
