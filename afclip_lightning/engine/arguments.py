"""The arguments of a command before they are parsed: what cannot be read, and leftovers of another dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afclip_lightning.errors import UserError
from afclip_lightning.files import parse_yaml, read_yaml

CONFIG = ("--config", "-c")
OF_A_SET = ("categories", "class_names")  # arguments of a dataset that mean nothing to another one
REMEDY = "Mend it, or leave it out."


def check_files(args: Sequence[str]) -> None:
    """Checks that the configs of a command can be read; the parser would say neither which one nor why.

    Raises:
        UserError: One is no YAML file of options.
    """
    for place in range(len(args)):
        option, value = _option(args, place)
        if option in CONFIG or (option and value.endswith((".yaml", ".yml")) and Path(value).exists()):
            _read(value)


def unclosed(args: Sequence[str]) -> str:
    """Returns what is wrong with a list or mapping among the arguments that is no YAML; an empty text if none is."""
    for place in range(len(args)):
        option, value = _option(args, place)
        if option and value.startswith(("{", "[")):
            try:
                parse_yaml(value, object, f"{option} {value}", remedy="Close each bracket and quote.")
            except UserError as error:
                return str(error)
    return ""


def without_leftovers(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns arguments in which a dataset's categories and class names end where another dataset takes its place.

    The parser keeps whatever the new class takes too, and would look for the categories of the old set in the new one.

    Returns:
        The arguments, and a sentence on each set of which something was left out.
    """
    kept: list[str] = []
    notes: list[str] = []
    data: dict[str, Any] = {}
    for place, arg in enumerate(args):
        new = _data(*_option(args, place))
        if new.get("class_path"):
            was, now = (str(part.get("class_path") or "").rpartition(".")[2] for part in (data, new))
            left = [name for name in OF_A_SET if data.get(name) is not None]
            if was and was != now and left:
                kept += [f"--data.{name}=null" for name in left]
                notes.append(f"Left out: {' and '.join(left)} of {was}, which mean nothing to {now}.")
            data = new if was != now else {**data, **new}
        else:
            data |= new
        kept.append(arg)
    return kept, notes


def _data(option: str, value: str) -> dict[str, Any]:
    """Returns what an option says of the data: its class and what is `OF_A_SET`."""
    if option == "--data" and not value.startswith("{") and not value.endswith((".yaml", ".yml")):
        return {"class_path": value}
    if option in CONFIG:
        section = _read(value).get("data")
    elif option == "--data":
        section = parse_yaml(value, object, option, remedy=REMEDY) if value.startswith("{") else _read(value)
    else:
        return {}
    if not isinstance(section, Mapping):
        return {}
    arguments = section.get("init_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    return {name: part[name] for part in (section, arguments) for name in ("class_path", *OF_A_SET) if name in part}


def _option(args: Sequence[str], place: int) -> tuple[str, str]:
    """Returns the option that begins at a place, and its value; empty texts where none begins."""
    name, equals, value = args[place].partition("=")
    if not name.startswith("-"):
        return "", ""
    if not equals and place + 1 < len(args):
        value = args[place + 1]
    return name, value


def _read(value: str) -> dict[str, Any]:
    if value.startswith("{"):
        return parse_yaml(value, dict[str, Any], "--config", remedy=REMEDY)
    return read_yaml(value, dict[str, Any], remedy=REMEDY)
