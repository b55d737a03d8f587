"""Shortens the parser's messages to one line: the option, the expected value and the given value."""

import difflib
import re

from afclip_lightning.discovery import descendants

_KEY = re.compile(r'^( *)(?:- )?Parser key "([\w.+-]+)"', re.MULTILINE)
_NESTED = re.compile(r"NestedArg\(key='([\w.]+)'")
_GIVEN = re.compile(r"(?:Given value|Got value): (.*)")
_EXPECTED = re.compile(r"Expected an? (.*?)(?:\. Got value.*)?$", re.MULTILINE)
_CLASS = re.compile(r"Expected a dot import path string: ([\w.]+)$", re.MULTILINE)
_IMPORT = re.compile(r"Problem with given class_path '([\w.]+)':\n *(.*)|callable class: (.*)\. Got value: ([\w.]+)")
_REFUSED = re.compile(
    r"Option '[\w.]+' is not accepted|\w+ '[\w.]+' does not accept option '[\w.]+'|No action for key .*"
)
_LEARNING_RATE = " Name the optimiser, too: --model.optimizer torch.optim.Adam --model.optimizer.lr 0.001"
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}
_TYPES |= {"Sequence": "a list", "list": "a list", "dict": "a mapping", "Mapping": "a mapping"}


def one_line(message: str, *bases: type) -> str:
    """Returns a message of the parser, as one line if it is about the value of an option.

    Args:
        message: Message of the parser.
        bases: Base classes whose subclasses are suggested if a class is not found.
    """
    keys = list(_KEY.finditer(message))
    if not keys:
        return message
    root, inner, nested = keys[0][2], keys[-1][2], _NESTED.findall(message)
    key = f"{root}.{nested[-1]}" if nested else root if len(keys) == 1 else f"{root}.{inner}"
    part = _indented(message[keys[-1].start() :], len(keys[-1][1]))
    if name := _CLASS.search(part):
        return f"{key}: there is no class {name[1]!r} that fits here{_nearest_class(name[1], bases)}."
    if fault := _IMPORT.search(part):
        return f"{key}: {fault[1] or fault[4]} cannot be imported: {fault[2] or fault[3]}.{_own_file(fault[2] or '')}"
    if refused := _REFUSED.search(message):
        return f"{key}: {refused[0]}.{_LEARNING_RATE if key.rpartition('.')[2] == 'lr' else ''}"
    given = _GIVEN.findall(part)
    expected = [words for text in _EXPECTED.findall(part) if (words := _in_words(text))]
    if not given or not expected:
        return message
    line = f"{key}: expected {' or '.join(dict.fromkeys(expected))}, got {given[-1]}"
    if "text" in expected and re.fullmatch(r"-?[\d.]+|True|False|None", given[0]):
        line += "; a name that reads as a number or as true or false goes in quotes, as in '[\"01\"]'"
    return f"{line}."


def _indented(text: str, indent: int) -> str:
    """Returns the first line and the following lines with a deeper indent."""
    first, *rest = text.split("\n")
    end = next(
        (n for n, line in enumerate(rest) if line.strip() and len(line) - len(line.lstrip()) <= indent), len(rest)
    )
    return "\n".join([first, *(rest if indent == 0 else rest[:end])])


def _own_file(reason: str) -> str:
    """Returns how a module of the user is found, if one was not."""
    if not reason.startswith("No module named"):
        return ""
    return " Python finds a file of your own if PYTHONPATH names its folder, as in PYTHONPATH=. for the current one."


def _nearest_class(name: str, bases: tuple[type, ...]) -> str:
    """Returns a suggestion for the class that may have been meant."""
    classes = {cls.__name__ for base in bases for cls in descendants(base)}
    close = difflib.get_close_matches(name.rpartition(".")[2], classes, n=1)
    return f"; did you mean {close[0]!r}" if close else ""


def _in_words(expected: str) -> str:
    found = re.findall(r"<class '(?:[\w.]*\.)?(\w+)'>", expected)
    if found:
        return " or ".join(_TYPES.get(name, name) for name in found)
    return re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", expected).strip()
