"""The type of arrays that come from outside."""

from typing import Any

from numpy.typing import NDArray

AnyArray = NDArray[Any]
"""Of any type of number: nothing has been checked yet."""
