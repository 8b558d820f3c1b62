"""The type of arrays that come from outside."""

from typing import Any

from numpy.typing import NDArray

AnyArray = NDArray[Any]
"""An array whose type, shape and values have not been checked yet."""
