"""Float32 that is float32: products and convolutions whose operands no backend rounds to fewer bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_BACKENDS: Any = torch.backends  # whose stubs do not know all of these
_OPERATIONS: tuple[Any, ...] = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products and convolutions in float32, on CPU and GPU; the settings are put back at the end.

    By PyTorch's settings, some of them defaults, float32 operands may be rounded: to TensorFloat-32 (10 bits after the
    point) by cuBLAS and, by default, in every convolution of cuDNN; to bfloat16 (7 bits) by oneDNN where a processor
    has instructions for it, and not where it has none. A log P(x) of thousands of pixels then loses tenths of a nat,
    and differs from one processor to the next. Whatever computes a density, a bound or a gradient runs within this; the
    networks are rounded only where `--precision bfloat16` asks for it, by autocast, which this does not touch.

    The settings are the process's, not a thread's. It is also a decorator: `@full_float32()`.

    >>> torch.set_float32_matmul_precision("medium")
    >>> with full_float32():
    ...     torch.get_float32_matmul_precision()
    'highest'
    >>> torch.get_float32_matmul_precision()
    'medium'
    >>> torch.set_float32_matmul_precision("highest")
    """
    # The settings have an older and a newer interface; PyTorch refuses to tell one that contradicts the other.
    before = [operation.fp32_precision for operation in _OPERATIONS]
    matmul_before, cudnn_before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for operation in _OPERATIONS:
        operation.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul_before)
        torch.backends.cudnn.allow_tf32 = cudnn_before
        for operation, precision in zip(_OPERATIONS, before, strict=True):
            operation.fp32_precision = precision


def at_least_float32(tensor: Tensor) -> Tensor:
    """What a layer gave under autocast, as float32; float32 and float64 as they are.

    >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype, at_least_float32(torch.ones(1).double()).dtype
    (torch.float32, torch.float64)
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
