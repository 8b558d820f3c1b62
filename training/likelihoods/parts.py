"""Parts of a likelihood that have too many operators for `torch.export`: they are exported apart, and put in later."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from training.likelihoods.reductions import is_exporting

DOMAIN = "logpx"
"""Of the operators that stand for parts until training/publish/part_export.py puts those in."""


class HasParts(Protocol):
    """A likelihood."""

    image_shape: tuple[int, int, int]

    @property
    def parts(self) -> Mapping[str, "Part"]:
        """By their names."""


class Part(NamedTuple):
    """A computation from rows [B, K, P] to images [B·K, C, H, W], in the rows' precision; in a graph K is 1."""

    compute: Callable[..., tuple[Tensor, ...]]
    num_outputs: int


def call_part(likelihood: HasParts, name: str, *rows: Tensor) -> tuple[Tensor, ...]:
    """What a part computes; while a graph is traced, float32 by an operator of `DOMAIN` that has the part's name."""
    part = likelihood.parts[name]
    if not is_exporting():
        return part.compute(*rows)
    found = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{name}",
        [one.float() for one in rows],
        dtypes=[torch.float32] * part.num_outputs,
        shapes=[(rows[0].shape[0], *likelihood.image_shape)] * part.num_outputs,
        version=1,
    )
    return tuple(one.to(rows[0].dtype) for one in found)
