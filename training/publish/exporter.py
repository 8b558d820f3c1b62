"""PyTorch's exporter as the store wants it: one opset, quiet, and without traces of the machine that it runs on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch

OPSET = 18


def model_of(program: torch.onnx.ONNXProgram | None) -> onnx.ModelProto:
    """The graph that `torch.onnx.export(dynamo=True)` made, without its notes."""
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) returns a program")
    model = program.model_proto  # another copy each time it is asked for
    strip_notes(model)
    return model


def serialised(model: onnx.ModelProto, *, check: bool = True) -> bytes:
    """The graph as the bytes of one file, the same each time."""
    if check:
        onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def strip_notes(model: onnx.ModelProto) -> None:
    """Remove doc strings and metadata: the exporter writes stack traces into them, with this machine's paths."""
    graph = model.graph
    noted = [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in noted:
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


_LOGGERS = "torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding"


@contextmanager
def exporter_quietened() -> Iterator[None]:
    """Keep back what the exporter of torch 2.13 says about itself; every other warning comes through."""
    # It logs that torchvision, which no model here uses, is not installed, and which operators it does not fold.
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # It copies tree specifications in a way that its own pytree module deprecates.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
