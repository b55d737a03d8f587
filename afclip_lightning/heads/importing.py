"""Converts a trained head of another project to our head file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from afclip_lightning.engine import factory
from afclip_lightning.heads.card import Card, card_from
from afclip_lightning.heads.file import SUFFIX, Head, write_head_file
from afclip_lightning.heads.foreign import Released, read_released
from afclip_lightning.heads.pack import dated
from afclip_runtime.errors import UserError, shown


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    Attributes:
        out: The head file.
        says: Texts on the known facts of the head, by source.
    """

    out: Path
    says: Mapping[str, str]


def import_head(
    path: Path,
    out: Path | None = None,
    method: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    card: Card | None = None,
    backbones: factory.Backbones | None = None,
) -> Imported:
    """Writes a trained head of another project as a head file.

    The backbone is built, because a head file identifies it by the hash of its weights and the file does not.

    Args:
        path: The file, or one of them if a head consists of two.
        out: The head file; by default a new file of the same name in the working directory, which must not exist.
        method: Expected method of the head; by default the method of its format.
        arguments: Constructor arguments that replace those of the project's code. A dot leads into the backbone.
        card: Facts that the user knows about the head.
        backbones: Backbones that are loaded already. See `factory.load_head`.

    Raises:
        UserError: The file cannot be read, has another format or does not fit, or the head file cannot be written.
    """
    place = Path(path.stem + SUFFIX) if out is None else out
    if out is None and place.exists():
        raise UserError(f"{shown(place)} already exists. Name the head file: --out FILE.")
    released = replace(read_released(path, method), given=dict(arguments or {}))
    built = factory.load_released(released, arguments, backbones)
    head = Head(
        built.state_dict(),
        f"{type(built).__module__}.{type(built).__qualname__}",
        msgspec.to_builtins(dict(built.hparams)),
        built.spec,
        {"class_path": released.format.method, "init_args": factory.with_arguments(released.model, arguments)},
        dated(_card(released, card or Card())),
    )
    write_head_file(place, head)
    return Imported(place, released.says(built))


def _card(released: Released, given: Card) -> Card:
    """Returns the user's card, completed with the known facts of the head."""
    known = {
        "title": f"{released.format.method}, imported from {released.path.name}",
        "limits": [f"The file does not say {released.unknown}: do not test it on the set that it was trained on."],
        "licence": released.format.licence,
        "sources": [released.format.project],
        **released.converted.known,
    }
    said = {name: value for name, value in given.to_dict().items() if value}
    return card_from({**known, **said}, shown(released.path))
