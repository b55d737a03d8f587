"""Trained heads of other projects: the format and contents of a file, and whether it fits a method."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afclip_lightning.backbones.archives import read_modules
from afclip_lightning.heads import released
from afclip_lightning.heads.format import Converted, Format
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.errors import CheckpointError, shown

TAPS = ("layers", "layer", "vv_from")  # arguments of methods that select features
UNKNOWN = "on which backbone and which images it was trained"


@dataclass(frozen=True)
class Released:
    """A trained head of another project.

    Attributes:
        path: File that was named.
        format: Format of the file.
        converted: Converted contents of the file and of the files that belong to it.
        given: Constructor arguments of its training as stated by the user. They replace those that the project's code
            fixes. A dot leads into the backbone.
    """

    path: Path
    format: Format
    converted: Converted
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Returns the method's arguments: from the shapes, from the project's code, and from the user."""
        given = {name: value for name, value in self.given.items() if "." not in name}
        return {**self.format.arguments, **self.converted.arguments, **given}

    @property
    def unknown(self) -> str:
        """Returns a text on the facts that its files do not state."""
        return UNKNOWN if "epochs" in self.converted.known else f"{UNKNOWN}, and for how many epochs"

    @property
    def model(self) -> dict[str, Any]:
        """Returns the `model` section of a config that builds its method."""
        return {"class_path": self.format.method, "init_args": {"backbone": self.format.backbone, **self.arguments}}

    def checkpoint(self, method: AnomalyMethod) -> dict[str, Any]:
        """Returns the head in the form of `read_checkpoint`, for a method whose backbone is assumed to be right.

        A file does not name its backbone. Only the word embeddings that it holds are compared.

        Raises:
            CheckpointError: The method or the backbone differs.
        """
        if type(method).__name__ != self.format.method:
            raise CheckpointError(
                f"it is a head of {self.format.method} ({self.format.project}), the model is {type(method).__name__}."
            )
        theirs = {name: list(tensor.shape) for name, tensor in self.converted.tensors.items()}
        ours = {name: list(tensor.shape) for name, tensor in method.state_dict().items()}
        problems = [
            f"{name}: {theirs.get(name, 'absent')} in the file, {ours.get(name, 'absent')} here"
            for name in [*theirs, *(name for name in ours if name not in theirs)]
            if theirs.get(name) != ours.get(name)
        ]
        try:
            if problems:
                raise ValueError("\n  ".join(["its tensors do not fit", *problems[:8]]))
            for prompt in self.converted.prompts:
                prompt.check(method.backbone)
        except ValueError as error:
            raise CheckpointError(
                f"it is not a head for {method.backbone.description}: {error}\nName the backbone that it was trained "
                "on (--model.backbone.model, --model.backbone.weights), and what else its training changed."
            ) from error
        return {
            "state_dict": dict(self.converted.tensors),
            "method": f"{type(method).__module__}.{type(method).__qualname__}",
            "method_hyperparameters": {**method.hparams, **self.arguments},
            "feature_spec": method.spec.to_dict(),
        }

    def differences(self, method: AnomalyMethod) -> list[str]:
        """Returns the differences of a method from the project's code, one line each."""
        backbone = {name: getattr(method.backbone, name) for name in ("image_size", "pos_embed", "activation")}
        pairs = {f"backbone.{name}": (self.format.backbone[name], here) for name, here in backbone.items()}
        names = [name for name in self.arguments if name in (*TAPS, *method.fixed_by_training)]
        pairs |= {name: (self.arguments[name], method.hparams[name]) for name in names}
        return [
            f"{name}: {theirs} in its code, {_plain(here)} here"
            for name, (theirs, here) in pairs.items()
            if _plain(here) != _plain(theirs)
        ]

    def says(self, method: AnomalyMethod) -> dict[str, str]:
        """Returns texts on the known facts of the head by source. `method` has its tensors."""
        names, assumed = self.converted.left_out, self.format.arguments
        return {
            "format": f"{self.format.method}, as {self.format.project} writes it",
            "read from the file": _listed(self.converted.arguments) or "tensors alone",
            "given": _listed({name: value for name, value in self.given.items() if "." not in name}) or "nothing",
            "assumed, as its code has it": _listed({n: value for n, value in assumed.items() if n not in self.given}),
            "backbone": method.backbone.description,
            "left out": f"{len(names)} tensors that nothing uses, such as {names[0]}" if names else "nothing",
            "in no file": self.unknown,
            "licence": self.format.licence,
        }


def in_lines(says: Mapping[str, str]) -> str:
    """Returns the result of `Released.says` as text, one line per source."""
    width = max(map(len, says))
    return "\n".join(f"  {kind:{width}}  {shown(what)}" for kind, what in says.items())


def formats() -> dict[str, Format]:
    """Returns the formats by the names of their methods."""
    modules = [
        importlib.import_module(f"{released.__name__}.{module.name}")
        for module in pkgutil.iter_modules(released.__path__)
    ]
    found: list[Format] = [module.FORMAT for module in modules]
    return {one.method: one for one in found}


def format_of(method: str) -> Format:
    """Returns the format of a method, in any spelling of its name (`AF-CLIP`, `afclip`).

    Raises:
        CheckpointError: The method has no format.
    """
    known = formats()
    found = next((one for name, one in known.items() if _letters(name) == _letters(method)), None)
    if found is None:
        raise CheckpointError(f"There is no format of heads for {shown(method)}. Known formats: {', '.join(known)}.")
    return found


def read_released(path: Path, method: str | None = None) -> Released:
    """Returns the trained head of another project. No code of the file is run.

    Args:
        path: The file, or one of them if a head consists of two.
        method: Expected method of the head; by default the method of its format.

    Raises:
        CheckpointError: The file, or the one that belongs to it, cannot be read, has another or an unknown format, or
            holds other tensors than a head.
    """
    wanted = None if method is None else format_of(method)
    content = _read(path)
    found = _recognised(content)
    if found is None:
        known = "\n".join(f"  {one.method}: {one.project}" for one in formats().values())
        raise CheckpointError(
            f"{shown(path)}: is not a trained head of a project whose format is known here:\n{known}\n"
            "Name such a file, or a head of afclip_lightning's own."
        )
    if wanted is not None and found is not wanted:
        raise CheckpointError(
            f"{shown(path)}: is a head of {found.method} ({found.project}), not of {wanted.method}. Say --method "
            f"{found.method}, or name another file."
        )
    try:
        paths = found.files(path)
        if absent := next((one for one in paths if not one.exists()), None):
            raise ValueError(f"is one of two files, and {shown(absent)} is missing. Put it there")
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: {error}.") from error
    contents = [content if one == path else _read(one) for one in paths]
    try:
        return Released(path, found, found.convert(contents))
    except ValueError as error:
        raise CheckpointError(
            f"{shown(path)}: {error}. {found.project} writes no such heads of {found.method}: the file is damaged, or "
            "that code was changed. Name another file."
        ) from error


def find_released(path: Path) -> Released | None:
    """Returns the trained head of another project, or `None` if a file's keys match no known format.

    Raises:
        CheckpointError: The keys match a format, but the file holds other tensors than a head, or the file that belongs
            to it is missing.
    """
    try:
        if _recognised(_read(path)) is None:
            return None
    except CheckpointError:
        return None
    return read_released(path)


def _read(path: Path) -> Any:
    classes = {name for one in formats().values() for name in one.classes}
    return read_modules(path, CheckpointError, classes)


def _recognised(content: Any) -> Format | None:
    return next((one for one in formats().values() if one.recognises(content)), None)


def _letters(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in arguments.items())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
