"""PyTorch's exporter, without what it does anew at each export."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from torch.onnx._internal.exporter import _registration


@contextmanager
def operators_looked_up_once() -> Iterator[None]:
    """At each export it reads the source of every operator that ONNX Script has, which takes half of the time."""
    look_up = staticmethod(cache(_registration.ONNXRegistry.from_torchlib))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", look_up)
        yield
