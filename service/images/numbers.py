"""Convert nested lists of numbers, as a JSON parser makes them, to arrays.

Types and lengths are checked before NumPy is called. NumPy finds one type for all entries: a single text among the
numbers would turn each number into a text of the same length, at 4 bytes a character.
"""

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = {int, float}  # not bool, which is a subclass of int


class NotNumbersError(ValueError):
    """The lists are ragged, too deeply nested, or contain something other than numbers; the message says which."""


def array_of(item: Any, *, max_dimensions: int) -> NDArray[np.float64]:
    """Convert a list of numbers, or a list of equally long lists of numbers, and so on, to an array.

    >>> array_of([[1, 0.5], [0, 0.25]], max_dimensions=2).tolist()
    [[1.0, 0.5], [0.0, 0.25]]

    Raises:
        NotNumbersError: it is not a list, the lists are ragged or nested deeper than `max_dimensions`, or an entry is
            not a number that fits into float64.
    """
    if type(item) is not list:
        raise NotNumbersError(f"it is {type(item).__name__}, not a list")
    shape: list[int] = []
    lists = [item]  # all lists at one depth
    while True:
        lengths = set(map(len, lists))
        if len(lengths) > 1:
            raise NotNumbersError("the lists are ragged")
        shape += lengths
        if len(shape) > max_dimensions:
            raise NotNumbersError(f"the lists are nested more than {max_dimensions} deep")
        types: set[type] = set()
        for entries in lists:
            types.update(map(type, entries))
        if types != {list}:
            break
        lists = list(chain.from_iterable(lists))
    if not types <= _NUMBERS:
        names = ", ".join(sorted(kind.__name__ for kind in types - _NUMBERS))
        raise NotNumbersError("the lists are ragged" if types & _NUMBERS and list in types else f"it holds {names}")
    try:
        flat = np.fromiter(chain.from_iterable(lists), np.float64, len(lists) * shape[-1])
    except OverflowError:
        raise NotNumbersError("a number is beyond float64") from None
    return flat.reshape(shape)
