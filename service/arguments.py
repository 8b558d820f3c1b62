"""Command lines whose options have the ranges of pydantic types, which check them and are told in help and errors.

pydantic-settings could make a command line of a model by itself. It would not be this one: its options have other names
and forms, what was not given is not told from a default, and a refusal is several lines.
"""

import argparse
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AllowInfNan, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LARGE = 2**20  # powers of two from here on are written as such


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one line: a list of forty options would hide what is wrong. So do its commands'."""

    def error(self, message: str) -> NoReturn:
        """End the process with status 2, saying why."""
        self.exit(2, f"error: {message} ({self.prog} --help lists the options)\n")


def add_number(
    parser: argparse.ArgumentParser,
    option: str,
    hint: Any,
    *,
    help: str,  # noqa: A002 (as argparse calls it)
    unset: str = "",
    default: Any = argparse.SUPPRESS,
) -> None:
    """Declare an option that takes a number of type `hint`.

    Args:
        parser: to declare it of.
        option: with its hyphens.
        hint: `int` or `float`, annotated with its range, and perhaps `| None`.
        help: what it is; the range is added.
        unset: the default in words, where it is not a number.
        default: the number; without one the parsed arguments lack it.
    """
    words = [help, range_in_words(hint)]
    told = "; ".join(word for word in words if word) + (f" (default: {unset})" if unset else "")
    parser.add_argument(option, type=number(hint), default=default, help=told)


def number(hint: Any) -> Callable[[str], Any]:
    """A type of option, for argparse: a number that is of the type `hint`.

    >>> number(Annotated[int, Ge(1)])("3")
    3
    >>> number(Annotated[int, Ge(1)])("0")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: must be at least 1, not 0
    """
    base, _ = _taken_apart(hint)
    adapter = TypeAdapter(hint)

    def parse(text: str) -> Any:
        try:
            value = base(text)
        except ValueError:
            raise argparse.ArgumentTypeError(requirement(hint, text)) from None
        try:
            return adapter.validate_python(value, strict=True)
        except ValidationError:
            raise argparse.ArgumentTypeError(requirement(hint, value)) from None

    return parse


def requirement(hint: Any, value: object) -> str:
    """What a type asks for, in words, and the value that is not so.

    >>> requirement(Annotated[float, Ge(0), Lt(1)], 1.5), requirement(Annotated[int, Ge(1)] | None, "many")
    ('must be at least 0 and less than 1, not 1.5', "must be a whole number, at least 1, not 'many'")
    >>> requirement(Literal["mlp", "resnet"], "cnn")
    "must be one of mlp, resnet, not 'cnn'"
    """
    base, _ = _taken_apart(hint)
    if get_origin(base) is Literal:
        return f"must be one of {', '.join(map(str, get_args(base)))}, not {value!r}"
    if get_origin(base) is tuple:
        each = get_args(base)
        return f"must be {len(each)} whole numbers, each {range_in_words(each[0])}, not {value!r}"
    wanted: tuple[type, ...] = {int: (int,), float: (int, float)}.get(base, ())
    is_number = isinstance(value, wanted) and not isinstance(value, bool)
    words = ["" if is_number else _KINDS[base], range_in_words(hint)]
    return f"must be {', '.join(word for word in words if word)}, not {value!r}"


def range_in_words(hint: Any) -> str:
    """The range of a number's type; nothing where it has none.

    >>> range_in_words(Annotated[int, Ge(0), Lt(2**63)]), range_in_words(Annotated[float, AllowInfNan(False), Gt(0)])
    ('at least 0 and less than 2**63', 'positive and finite')
    """
    base, constraints = _taken_apart(hint)
    words = []
    for constraint in constraints:
        match constraint:
            case Ge(ge=least):
                words.append(f"at least {_written(least)}")
            case Gt(gt=int(bound)) if base is int:
                words.append(f"at least {_written(bound + 1)}")
            case Gt(gt=0):
                words.append("positive")
            case Gt(gt=bound):
                words.append(f"more than {_written(bound)}")
            case Le(le=most):
                words.append(f"at most {_written(most)}")
            case Lt(lt=bound):
                words.append(f"less than {_written(bound)}")
    bounded = any(isinstance(constraint, (Le, Lt)) for constraint in constraints)
    if not bounded and AllowInfNan(allow_inf_nan=False) in constraints:
        words.append("finite")
    return " and ".join(words)


def without_none(hint: Any) -> Any:
    """The type of an option that may be left out.

    >>> without_none(int | None)
    <class 'int'>
    """
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    return hint


def _taken_apart(hint: Any) -> tuple[Any, list[Any]]:
    """A type without None, and its constraints: `Field(ge=1)` is one that holds others."""
    hint = without_none(hint)
    if get_origin(hint) is not Annotated:
        return hint, []
    base, *found = get_args(hint)
    constraints = [part for item in found for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    return base, constraints


def _written(bound: Any) -> str:
    """A bound as people write it: 2**63, but 4096."""
    if isinstance(bound, int) and bound >= _LARGE:
        for offset, words in ((0, ""), (1, " - 1")):
            if (power := bound + offset).bit_count() == 1:
                return f"2**{power.bit_length() - 1}{words}"
    return str(bound)
