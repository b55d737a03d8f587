"""Checks and changes of a command's arguments before they are parsed: unreadable values, leftovers, null."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from afclip_lightning.discovery.configs import find_config
from afclip_runtime.errors import UserError
from afclip_runtime.files import parse_yaml, read_yaml

T = TypeVar("T")

CONFIG = ("--config", "-c")
OF_ONE_DATASET = ("root", "name", "categories", "class_names")  # arguments that apply to one dataset only
REMEDY = "Correct it, or leave it out."


def with_found_configs(args: Sequence[str]) -> list[str]:
    """Returns arguments in which a config that comes with the package is named by its path: see `find_config`."""
    found = list(args)
    for place in range(len(args)):
        option, value = option_at(args, place)
        if option and value.startswith("configs/"):
            at = place if "=" in args[place] else place + 1
            found[at] = args[at].removesuffix(value) + str(find_config(value))
    return found


def check_files(args: Sequence[str]) -> None:
    """Checks that the configs of a command can be read. The parser would say neither which one is wrong nor why.

    Raises:
        UserError: A config is not a YAML file of options.
    """
    for place in range(len(args)):
        option, value = option_at(args, place)
        if option in CONFIG or (option and value.endswith((".yaml", ".yml")) and Path(value).exists()):
            read_config(value)


def unclosed(args: Sequence[str]) -> str:
    """Returns the problem of a list or mapping among the arguments that is not YAML; an empty text if there is none."""
    for place in range(len(args)):
        option, value = option_at(args, place)
        if option and value.startswith(("{", "[")):
            try:
                read_value(option, value, object)
            except UserError as error:
                return str(error)
    return ""


def without_leftovers(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments without values that belong to a dataset which a later argument replaces.

    The parser would keep each value that the new class accepts too, such as the categories and the folder of the old
    dataset.

    Returns:
        The arguments, and one sentence per dataset whose values were left out.
    """
    kept: list[str] = []
    notes: list[str] = []
    data: Any = {}
    for place, arg in enumerate(args):
        option, value = option_at(args, place)
        new = _data(option, value)
        if leftovers := _leftovers(data, new, notes):
            kept.append(f"--data={json.dumps(leftovers)}")
        data = _merged(data, new)
        given = option.removeprefix("--data.")
        if given != option and given in OF_ONE_DATASET:  # the user gave it explicitly: it stays
            data.get("init_args", {}).pop(given, None)
        kept.append(arg)
    return kept, notes


def with_sections(args: Sequence[str]) -> list[str]:
    """Returns the arguments, with each value that the parser would corrupt moved into a section.

    For a nested option (`--model.backbone.vision_weights=null`), the parser reads the value, writes it with `str` and
    reads it again. So null becomes the text "None", also within lists. A section is read only once:
    `--model={backbone: {vision_weights: null}}`. It is merged with earlier arguments, as the option would be.
    """
    kept: list[str] = []
    place = 0
    while place < len(args):
        option, value = option_at(args, place)
        section = _section(option, value)
        kept.append(section or args[place])
        place += 2 if section and "=" not in args[place] else 1
    return kept


def _section(option: str, value: str) -> str:
    """Returns an option as a section; an empty text if the parser keeps its value as it is."""
    names = [name for name in option.removeprefix("--").split(".") if name != "init_args"]
    outer = 2 if names[0] == "trainer" else 1  # the trainer's own options are not nested for the parser
    if len(names) < outer + 2 or not value:
        return ""
    try:
        section: Any = parse_yaml(value, object, option, remedy=REMEDY)
        if isinstance(section, str) or parse_yaml(str(section), object, option, remedy=REMEDY) == section:
            return ""
    except UserError:
        return ""  # the parser reports it
    for name in reversed(names[outer:]):
        section = {name: section}
    return f"--{'.'.join(names[:outer])}={yaml.safe_dump(section, default_flow_style=True, width=math.inf).strip()}"


def _data(option: str, value: str) -> dict[str, Any]:
    """Returns the section of the data that an option sets: its class and its arguments."""
    if option == "--data" and not value.startswith("{") and not value.endswith((".yaml", ".yml")):
        return {"class_path": value, "init_args": {}}
    if option in CONFIG:
        section = read_config(value).get("data")
    elif option == "--data":
        section = parse_yaml(value, object, option, remedy=REMEDY) if value.startswith("{") else read_config(value)
    elif value.startswith("[") and (name := re.fullmatch(r"--data\.(?:init_args\.)?(\w+)", option)):
        section = {name[1]: parse_yaml(value, object, option, remedy=REMEDY)}  # several datasets
    else:
        return {}
    return _plain(section) if isinstance(section, Mapping) else {}


def _plain(value: Any) -> Any:
    """Returns a section with each dataset's arguments in `init_args`. In the input they may also be beside it."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if not isinstance(value, Mapping):
        return value
    given = value.get("init_args")
    beside = {name: part for name, part in value.items() if name not in ("class_path", "init_args")}
    arguments = {**beside, **(given if isinstance(given, Mapping) else {})}
    section = {"init_args": {name: _plain(part) for name, part in arguments.items()}}
    return {"class_path": value["class_path"], **section} if value.get("class_path") else section


def _is_another(old: Any, new: Any) -> bool:
    """Returns whether a section names another class than the section before it."""
    names = [str(section.get("class_path") or "").rpartition(".")[2] for section in (old, new)]
    return all(names) and names[0] != names[1]


def _leftovers(old: Any, new: Any, notes: list[str]) -> Any:
    """Returns the section that clears the arguments of datasets in `old` that `new` replaces; `None` if none is."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):  # as the parser pairs them
        parts = [_leftovers(before, after, notes) for before, after in zip(old, new, strict=True)]
        kept = [part or _as_it_is(was) for part, was in zip(parts, old, strict=True)]
        return kept if any(parts) else None
    if not (isinstance(old, Mapping) and isinstance(new, Mapping) and old.get("class_path")):
        return None
    before, after = old["init_args"], new.get("init_args", {})
    if _is_another(old, new):
        cleared: dict[str, Any] = {name: None for name in OF_ONE_DATASET if before.get(name) is not None}
        if dropped := [name for name in cleared if name not in after]:
            was, now = (section["class_path"].rpartition(".")[2] for section in (old, new))
            notes.append(f"Left out: {_listed(dropped)} of {was}, which mean nothing to {now}.")
    else:
        found = {name: _leftovers(before[name], after[name], notes) for name in after if name in before}
        # If several datasets replace one, the parser would give its arguments to each of them.
        several = [name for name in found if isinstance(before[name], Mapping) and isinstance(after[name], list)]
        cleared = {name: part for name, part in found.items() if part} | dict.fromkeys(several)
    return {"class_path": old["class_path"], "init_args": cleared} if cleared else None


def _as_it_is(section: Any) -> Any:
    return {"class_path": section.get("class_path")} if isinstance(section, Mapping) else section


def _merged(old: Any, new: Any) -> Any:
    """Returns two sections merged as the parser merges them, as far as `_leftovers` needs it."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [_merged(before, after) for before, after in zip(old, new, strict=True)]
    if not (isinstance(old, Mapping) and isinstance(new, Mapping) and "init_args" in old) or _is_another(old, new):
        return new
    arguments = {name: _merged(old["init_args"].get(name), value) for name, value in new.get("init_args", {}).items()}
    return {**old, **new, "init_args": {**old["init_args"], **arguments}}


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def option_at(args: Sequence[str], place: int) -> tuple[str, str]:
    """Returns the option at a position of the arguments, and its value; empty texts if no option begins there."""
    name, equals, value = args[place].partition("=")
    if not name.startswith("-"):
        return "", ""
    if not equals and place + 1 < len(args):
        value = args[place + 1]
    return name, value


def read_value(option: str, value: str, kind: type[T]) -> T:
    """Returns the list or mapping that is the value of an option.

    Args:
        option: The option, for messages.
        value: Its value, as YAML.
        kind: Type that the value must have.

    Raises:
        UserError: The value is not YAML, or has another type.
    """
    return parse_yaml(value, kind, f"{option} {value}", remedy="Close each bracket and quote.")


def read_config(value: str) -> dict[str, Any]:
    """Returns the content of a value of `--config`: a file, or a mapping in its place.

    Raises:
        UserError: The value is not a YAML mapping.
    """
    if value.startswith("{"):
        return parse_yaml(value, dict[str, Any], "--config", remedy=REMEDY)
    return read_yaml(value, dict[str, Any], remedy=REMEDY)
