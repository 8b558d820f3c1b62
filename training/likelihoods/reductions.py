"""Sums over pixels: plain while training, and in an exported graph fast and the same in any batch.

ONNX Runtime adds float32 in vectors of four, from the first address that is aligned for them: of rows whose length is
no multiple of four, the order of adding, and so the last bit, depends on the place in the batch. A product's does not.
The last bit of its float32 logarithm depends on where a tensor is cut between threads; of its float64 logarithm,
float32 does not show it. An exported graph therefore sums odd rows as products, and takes logarithms of float64.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.arrays import largest_divisor

MAX_SUMMED = 1024
"""Pixels that are added in float32. A float32 sum of a large image's nats, some -6·10⁵, would have steps of 0.06."""
_SUMMED_GROUP = 16
_PACKET = 4
Sums = Literal["plain", "serving", "any size", "any small size"]
_sums: ContextVar[Sums | None] = ContextVar("sums", default=None)


@contextmanager
def use_sums(sums: Sums) -> Iterator[None]:
    """In here sums are as said, by whatever means PyTorch traces them.

    `plain` as in training; `serving` as in an exported graph. `any size` and `any small size` leave the number of
    pixels open, as service/engine/format1 needs it: the former adds padded rows in float64, and the latter is for
    multiples of 4 up to 1024, whose sums it takes as `serving` does. There a negative size of a `Reshape`, other than
    -1, stands for the largest divisor of the number of pixels up to its absolute value, and a negative length of a
    `Pad` for what the groups of such a divisor lack to a multiple of 4.
    """
    token = _sums.set(sums)
    try:
        yield
    finally:
        _sums.reset(token)


def is_exporting() -> bool:
    """Whether the computation is being traced into a graph that will serve."""
    sums = _sums.get()
    return torch.compiler.is_exporting() if sums is None else sums != "plain"


def _any_size() -> bool:
    return _sums.get() == "any size"


def _any_small_size() -> bool:
    return _sums.get() == "any small size"


def sum_pixels(terms: Tensor) -> Tensor:
    """Sum over the last axis: [B, K, P] → [B, K], in nats; float64 in an exported graph.

    There up to 1024 pixels are added in float32; of more, groups of 16, and their sums in float64.
    """
    if not is_exporting():
        return terms.sum(-1)
    if _any_size():
        return _padded(terms.double(), _PACKET, 0.0).sum(-1)
    if _any_small_size():
        return terms.sum(-1).double()
    length = terms.shape[-1]
    if length <= MAX_SUMMED or terms.dtype == torch.float64:
        return _sum_last(terms)
    if length % _SUMMED_GROUP:
        return _sum_last(terms.double())
    return _sum_last(_sum_last(split(terms, length // _SUMMED_GROUP, _SUMMED_GROUP)))


def dot_pixels(terms: Tensor, x: Tensor) -> Tensor:
    """Σ over pixels of terms [B, K, P] times x [B, 1, P]: [B, K], as exact as `sum_pixels`."""
    if not is_exporting():
        return torch.bmm(terms, x.mT).squeeze(-1)
    num_pixels = terms.shape[-1]
    if _any_size() or (not _any_small_size() and num_pixels > MAX_SUMMED):
        return sum_pixels(terms * x)
    column = _reshape(x, (0, -1, 1), (x.shape[0], num_pixels, 1))
    return torch.bmm(terms, column).squeeze(-1).double()


def sum_log(factors: Tensor, *, most: int, rows: bool = False) -> Tensor:
    """Σ log(factor) over the last axis of positive factors [B, K, P]: [B, K], nats.

    An exported graph multiplies up to `most` factors before it takes one logarithm, of float64.

    Args:
        factors: so bounded that a product of `most` of them is neither 0 nor infinite in float32.
        most: factors of one product.
        rows: multiply neighbours, which is faster for large groups; else pixels that lie P/group apart.
    """
    if not is_exporting():
        return torch.log(factors).sum(-1)
    if _any_size():
        padded = _padded(factors, _PACKET * most, 1.0)
        groups = _reshape(padded, (0, 0, -1, most), (*factors.shape[:2], _PACKET, most))
        return torch.log(groups.prod(-1).double()).sum(-1)
    if _any_small_size():
        sizes, rest = ((-1, -most), (1, most)) if rows else ((-most, -1), (most, 1))
        product = _reshape(factors, (0, 0, *sizes), (*factors.shape[:2], *rest)).prod(-1 if rows else 2)
        inputs = (product, torch.tensor((0, 0, 0, 0, 0, -most)), torch.tensor(1.0))
        return torch.log(_operator("Pad", inputs, product.shape, product.dtype).double()).sum(-1)
    num_pixels = factors.shape[-1]
    group = largest_divisor(num_pixels, most)
    if rows:
        product = split(factors, num_pixels // group, group).prod(-1)
    else:
        product = split(factors, group, num_pixels // group).prod(2)
    return _sum_last(torch.log(product.double()))


def sum_softplus(terms: Sequence[Tensor], *, most: int, factor: Tensor | None = None, rows: bool = False) -> Tensor:
    """Σ over pixels of Σ log(1 + exp(t)) over the terms, plus log(factor): tensors [B, K, P] → [B, K], nats.

    log(1 + exp(t)) = max(t, 0) + log(1 + exp(-|t|)), whose bracket lies in (1, 2]: see `sum_log`. ONNX Runtime's
    Softplus is six times as slow.
    """
    if not is_exporting():
        total = sum(F.softplus(term) for term in terms)
        assert isinstance(total, Tensor)  # noqa: S101
        return (total if factor is None else total + torch.log(factor)).sum(-1)
    positive = None
    for term in terms:
        bracket = torch.exp(-torch.abs(term)) + 1
        factor = bracket if factor is None else factor * bracket
        positive = torch.relu(term) if positive is None else positive + torch.relu(term)
    assert positive is not None  # noqa: S101
    assert factor is not None  # noqa: S101
    return sum_pixels(positive) + sum_log(factor, most=most, rows=rows)


def softplus(tensor: Tensor) -> Tensor:
    """log(1 + exp(t)); ONNX Runtime's own has no float64."""
    if not is_exporting():
        return F.softplus(tensor)
    return torch.relu(tensor) + torch.log1p(torch.exp(-torch.abs(tensor)))


def add(tensors: Sequence[Tensor]) -> Tensor:
    """Their sum, from the first on."""
    return functools.reduce(torch.add, tensors)


def positive_part(tensor: Tensor) -> Tensor:
    """max(t, 0); with a gradient of which PyTorch can trace another."""
    return torch.relu(tensor) if is_exporting() else torch.where(tensor > 0, tensor, 0)


def magnitude(tensor: Tensor) -> Tensor:
    """|t|; with a gradient of which PyTorch can trace another."""
    return torch.abs(tensor) if is_exporting() else torch.where(tensor > 0, tensor, -tensor)


def split(tensor: Tensor, *sizes: int) -> Tensor:
    """The last axis as several, [B, K, P] → [B, K, *sizes]; a graph does not ask the tensor for its shape."""
    if not is_exporting() or tensor.dim() != 3:
        return torch.unflatten(tensor, -1, sizes)
    return _reshape(tensor, (0, 0, *sizes), (*tensor.shape[:2], *sizes))


def join(tensor: Tensor) -> Tensor:
    """All axes from the third on as one, [B, K, *sizes] → [B, K, P]; a graph does not ask the tensor for its shape."""
    if not is_exporting():
        return tensor.flatten(2)
    return _reshape(tensor, (0, 0, -1), (*tensor.shape[:2], math.prod(tensor.shape[2:])))


def _padded(tensor: Tensor, multiple: int, value: float) -> Tensor:
    """More entries along the last axis, until their number is a multiple."""
    return F.pad(tensor, (0, -tensor.shape[-1] % multiple), value=value)


def _sum_last(terms: Tensor) -> Tensor:
    """Sum over the last axis, in the terms' own precision where that is the same in any batch: float64."""
    length = terms.shape[-1]
    if length % _PACKET == 0:
        return terms.sum(-1).double()
    ones = torch.ones(length, 1, dtype=torch.float64)
    return _operator("MatMul", (terms.double(), ones), (*terms.shape[:-1], 1), torch.float64).squeeze(-1)


def _reshape(tensor: Tensor, sizes: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Sizes of 0 are the tensor's along that axis, for which PyTorch's own would first ask it."""
    return _operator("Reshape", (tensor, torch.tensor(sizes)), shape, tensor.dtype)


def _operator(name: str, inputs: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """One of ONNX's operators, as it is."""
    result: Tensor = torch.onnx.ops.symbolic(name, inputs, dtype=dtype, shape=shape, version=18)
    return result
