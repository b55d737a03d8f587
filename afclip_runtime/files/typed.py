"""JSON and YAML as typed values. Each fault of a file becomes one error with the place and the remedy."""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from afclip_runtime.errors import UserError, shown
from afclip_runtime.files.reading import DOCUMENT_LIMIT, TABLE_LIMIT, read_text

T = TypeVar("T")

REMEDY = "Restore it, or run the command that wrote it again."
DEPTH_LIMIT = 64  # nested lists and mappings


@dataclass(frozen=True)
class Source:
    """Source of a value, for messages: its name, the remedy of a mistake, the class of errors."""

    name: str
    remedy: str
    error: type[UserError]

    def refuse(self, what: str) -> UserError:
        """Returns the error with a problem of this source."""
        return self.error(f"{self.name}: {what}. {self.remedy}".rstrip())

    def line(self, number: int) -> "Source":
        """Returns the source of one line."""
        return replace(self, name=f"{self.name}, line {number}")


def to_type(value: Any, kind: type[T], source: str, *, remedy: str = REMEDY, error: type[UserError] = UserError) -> T:
    """Converts plain values (from JSON, YAML, a checkpoint) to a type. It is strict: no text becomes a number.

    Args:
        value: Lists, mappings, text, numbers.
        kind: A dataclass, `msgspec.Struct`, `dict[str, float]`, ...; `Annotated[float, msgspec.Meta(gt=0)]` for limits.
        source: Source of the value, with which a message begins.
        remedy: Remedy of a mistake, with which a message ends.
        error: Class of the error.

    Raises:
        UserError: A value has another type. The message names the field and the expected type.
    """
    return typed(value, kind, Source(source, remedy, error))


def parse_json(
    text: str | bytes,
    kind: type[T],
    source: str,
    *,
    finite: bool = True,
    remedy: str = REMEDY,
    error: type[UserError] = UserError,
) -> T:
    """Parses a JSON text as a type.

    Args:
        text: The text.
        kind: See `to_type`.
        source: See `to_type`.
        finite: Whether every number must be finite.
        remedy: See `to_type`.
        error: Class of the error.

    Raises:
        UserError: The text is not JSON, is nested too deep, repeats a key, or has another type.
    """
    return _json(text, kind, Source(source, remedy, error), finite)


def read_json(
    path: str | Path,
    kind: type[T],
    *,
    finite: bool = True,
    remedy: str = REMEDY,
    limit: int = DOCUMENT_LIMIT,
    error: type[UserError] = UserError,
) -> T:
    """Reads a JSON file as a type.

    Args:
        path: The file.
        kind: See `to_type`.
        finite: See `parse_json`.
        remedy: See `to_type`.
        limit: Maximum size of the file in bytes.
        error: Class of the error.

    Raises:
        UserError: The file cannot be read, or see `parse_json`.
    """
    return _json(read_text(path, limit=limit, error=error), kind, Source(shown(path), remedy, error), finite)


def read_json_lines(
    path: str | Path,
    kind: type[T],
    *,
    finite: bool = True,
    cut_end: bool = False,
    remedy: str = REMEDY,
    limit: int = TABLE_LIMIT,
    error: type[UserError] = UserError,
) -> list[tuple[int, T]]:
    """Returns the values of a file with one JSON text per line, each with the number of its line.

    Args:
        path: The file. Blank lines are skipped.
        kind: Type of a line. See `to_type`.
        finite: See `parse_json`.
        cut_end: Whether to ignore a last line without a line break, which a killed process may have left incomplete.
        remedy: See `to_type`.
        limit: Maximum size of the file in bytes.
        error: Class of the error.

    Raises:
        UserError: See `read_json`. The message names the line.
    """
    source = Source(shown(path), remedy, error)
    lines = read_text(path, limit=limit, error=error).split("\n")
    if cut_end:
        del lines[-1]
    return [
        (number, _json(line, kind, source.line(number), finite)) for number, line in enumerate(lines, 1) if line.strip()
    ]


def parse_yaml(text: str, kind: type[T], source: str, *, remedy: str = REMEDY, error: type[UserError] = UserError) -> T:
    """Parses a YAML text as a type: plain values only, no repeated keys, a limited size with aliases expanded.

    Args:
        text: The text.
        kind: See `to_type`.
        source: See `to_type`.
        remedy: See `to_type`.
        error: Class of the error.

    Raises:
        UserError: The text is not YAML of this kind, or has another type.
    """
    from afclip_runtime.files.yaml_loader import YAMLError, load  # configs are YAML; inspection reads none

    where = Source(source, remedy, error)
    try:
        value = load(text, DEPTH_LIMIT)
    except YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        what = " ".join(str(getattr(problem, "problem", None) or problem).split())
        raise (where.line(mark.line + 1) if mark else where).refuse(f"cannot be read as YAML ({what})") from problem
    except RecursionError as problem:
        raise where.refuse("is nested too deep") from problem
    except Exception as problem:  # `2026-13-45` or `!!int x` raise errors of many classes
        raise where.refuse(f"cannot be read as YAML ({problem})") from problem
    check_values(value, where, finite=False)
    return typed(value, kind, where)


def read_yaml(
    path: str | Path,
    kind: type[T],
    *,
    remedy: str = REMEDY,
    limit: int = DOCUMENT_LIMIT,
    error: type[UserError] = UserError,
) -> T:
    """Reads a YAML file as a type.

    Args:
        path: The file.
        kind: See `to_type`.
        remedy: See `to_type`.
        limit: Maximum size of the file in bytes.
        error: Class of the error.

    Raises:
        UserError: The file cannot be read, or see `parse_yaml`.
    """
    return parse_yaml(read_text(path, limit=limit, error=error), kind, shown(path), remedy=remedy, error=error)


def _json(text: str | bytes, kind: type[T], source: Source, finite: bool) -> T:
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except RecursionError as problem:
        raise source.refuse("is nested too deep") from problem
    except json.JSONDecodeError as problem:
        if not text.strip():
            raise source.refuse("is empty") from problem
        where = source.line(problem.lineno) if problem.lineno > 1 else source
        raise where.refuse(f"is not valid JSON ({problem.msg} at column {problem.colno})") from problem
    except ValueError as problem:  # a repeated key, bytes that are not text, a number of thousands of digits
        raise source.refuse(f"cannot be read as JSON ({problem})") from problem
    check_values(value, source, finite)
    return typed(value, kind, source)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of JSON. Rejects a repeated key, since only its last value would be kept."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return result


def check_values(value: Any, source: Source, finite: bool) -> None:
    """Rejects deep nesting and, if `finite`, numbers that are not finite."""
    level = [("", value)]
    for _ in range(DEPTH_LIMIT):
        below: list[tuple[str, Any]] = []
        for name, part in level:
            if isinstance(part, dict):
                below += [(f"{name}.{key}" if name else str(key), child) for key, child in part.items()]
            elif isinstance(part, list):
                below += [(name, child) for child in part]
            elif finite and isinstance(part, float) and not math.isfinite(part):
                raise source.refuse(f"{name}: expected a finite number, got {part}".removeprefix(": "))
        if not below:
            return
        level = below
    raise source.refuse(f"is nested more than {DEPTH_LIMIT} deep")


_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
    "Tensor": "a tensor",
    "dict": "a mapping",
    "list": "a list",
    "NoneType": "nothing",
}
"""msgspec's names of types, in words."""


def typed(value: Any, kind: type[T], source: Source, strict: bool = True) -> T:
    """Converts a value to a type. Unless strict, text may become a number."""
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as problem:
        what, _, place = str(problem).partition(" - at ")
        field = place.replace("`", "").replace("key in ", "a key of ").replace("$.", "").replace("$", "").strip()
        what = what.replace("Object contains unknown field", "there is an unknown field")
        what = what.replace("Object missing required field", "there is no")
        what = re.sub("`([^`]*)`", lambda match: " or ".join(_WORDS.get(w, w) for w in match[1].split(" | ")), what)
        what = what[0].lower() + what[1:]
        raise source.refuse(f"{shown(field)}: {what}" if field else what) from problem
    except (UnicodeError, OverflowError, RecursionError) as problem:
        raise source.refuse(f"holds what is not read here ({problem})") from problem
