"""Builds objects from sections of a config or from command-line arguments. Every invalid value is one `UserError`."""

import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Any, TypeVar, get_args

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from afclip_lightning.discovery.messages import one_line
from afclip_runtime.errors import UserError, message_of

T = TypeVar("T")
Given = Mapping[str, Any] | Sequence[str]  # arguments by name, or options as on the command line


def instantiate(cls: type[T], given: Given, where: str = "") -> T:
    """Returns an object of a class.

    Args:
        cls: The class.
        given: Arguments of the class.
        where: Beginning of a message; by default the name of the class.

    Raises:
        UserError: An argument is unknown, absent or wrong, or the constructor refuses it.
    """
    return prepare(cls, given, where)()


def instantiate_subclass(base: type[Any], section: Mapping[str, Any] | Namespace) -> Any:
    """Returns the object that a section with `class_path` and `init_args` describes.

    Args:
        base: Base class of the object.
        section: Section as parsed by a command.

    Raises:
        UserError: The class does not exist, or it refuses an argument. The message is only that of the constructor.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "section")
    with refusals():
        return parser.instantiate_classes(Namespace(section=section)).section


def prepare(cls: type[T], given: Given, where: str = "", later: Sequence[str] = ()) -> Callable[..., T]:
    """Checks the arguments of a class and returns a function that makes an object of it.

    Args:
        cls: The class.
        given: See `instantiate`.
        where: See `instantiate`.
        later: Names of arguments that are objects already. They are passed to the returned function.

    Raises:
        UserError: An argument is unknown, absent or wrong. The returned function raises it, too.
    """
    where = where or cls.__name__
    parser = _parser_of(cls, later)
    parsed = _parse(parser, cls, given, where)

    def make(**ready: Any) -> T:
        try:
            with refusals(f"{where}: "):
                return cls(**ready, **vars(parser.instantiate_classes(parsed)))
        except TypeError as error:  # an argument without a type has a wrong value
            raise UserError(f"{where}: {message_of(error)}") from error

    return make


def all_arguments(cls: type, given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Returns all arguments of a class as plain values, with defaults for those not given.

    Args:
        cls: The class.
        given: Arguments of the class.
        where: See `instantiate`.

    Raises:
        UserError: An argument is unknown, absent or wrong.
    """
    arguments: dict[str, Any] = _parse(_parser_of(cls), cls, given, where or cls.__name__).as_dict()
    return arguments


def check_nulls(cls: type | None, arguments: Mapping[str, Any], where: str) -> None:
    """Raises if an argument that accepts no null is null, because the parser accepts null for any argument.

    Args:
        cls: The class, or `None` for the class that `class_path` of the arguments names.
        arguments: Arguments of the class, or a section of `class_path` and `init_args`.
        where: Option of the arguments, for the message.

    Raises:
        UserError: Such an argument is null.
    """
    if arguments.get("class_path"):
        module, _, name = str(arguments["class_path"]).rpartition(".")
        cls = getattr(importlib.import_module(module), name) if module else cls
        arguments = arguments.get("init_args") or {}
    parameters = inspect.signature(cls).parameters if inspect.isclass(cls) else {}
    for name in parameters.keys() & arguments.keys():
        kind, default, value = parameters[name].annotation, parameters[name].default, arguments[name]
        if isinstance(value, Mapping):
            check_nulls(kind, value, f"{where}.{name}")
        elif value is None and default is not None and kind is not Any and NoneType not in get_args(kind):
            rest = "it has no default" if default is parameters[name].empty else f"leave it out for {default!r}"
            raise UserError(f"{where}.{name}: null is not a valid value; {rest}.")


@contextmanager
def refusals(where: str = "") -> Iterator[None]:
    """Turns the error of a constructor into one message, because the parser wraps it in its own errors.

    Args:
        where: Beginning of the message, except if a constructor raises a `UserError` itself.

    Raises:
        UserError: The constructor or the parser refused a value.
    """
    try:
        yield
    except ValueError as error:
        cause: BaseException = error
        while cause.__cause__ and not isinstance(cause, UserError):
            cause = cause.__cause__
        raise UserError(f"{where}{message_of(cause)}{_place(cause)}") from error


def _place(error: BaseException) -> str:
    """Returns the line of code of an error that no value of an option explains, such as a misspelt name."""
    if not isinstance(error, NameError | AttributeError | LookupError):
        return ""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({type(error).__name__} in {last.filename}, line {last.lineno})"


def _parser_of(cls: type, left_out: Sequence[str] = ()) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, as_group=False, skip=set(left_out))
    return parser


def _parse(parser: ArgumentParser, cls: type, given: Given, where: str) -> Namespace:
    try:
        parsed = parser.parse_object(dict(given)) if isinstance(given, Mapping) else parser.parse_args(list(given))
    except (ArgumentError, ValueError, TypeError) as error:
        own = [base for base in cls.__mro__ if base.__module__.startswith("afclip_lightning")]
        message = one_line(message_of(error), *own)
        raise UserError(f"{where}: {' '.join(message.split())}") from error
    check_nulls(cls, parsed.as_dict(), where)
    return parsed
