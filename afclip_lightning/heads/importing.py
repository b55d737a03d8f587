"""From a trained head of another project to a head file of ours."""

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
    """What came of it.

    Attributes:
        out: The head file.
        says: What is known of the head and from where, in words by kind.
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

    The backbone is built: the file holds nothing of it, and a head file says by the hash of its weights which it is.

    Args:
        path: The file, or one of them where a head is two.
        out: The head file; by default one of this name in the working directory, which must not be there.
        method: The method that it should be of; by default that whose format it has.
        arguments: Constructor arguments in place of those that the project's code fixes; a dot leads into the backbone.
        card: What the user knows of the head.
        backbones: Those that are there already, see `factory.load_head`.

    Raises:
        UserError: The file cannot be read, is of another format, or does not fit; or the head file cannot be written.
    """
    place = Path(path.stem + SUFFIX) if out is None else out
    if out is None and place.exists():
        raise UserError(f"{shown(place)} is there already: name the head file, --out FILE.")
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
    """Returns the user's card with what is known of the head where it says nothing."""
    known = {
        "title": f"{released.format.method}, imported from {released.path.name}",
        "limits": [f"The file does not say {released.unknown}: do not test it on the set that it was trained on."],
        "licence": released.format.licence,
        "sources": [released.format.project],
        **released.converted.known,
    }
    said = {name: value for name, value in given.to_dict().items() if value}
    return card_from({**known, **said}, shown(released.path))
