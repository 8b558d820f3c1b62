"""(e) A resnet with alternating shapes. cuDNN's plan is kept for the last shape alone: does changing cost a new one?"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gpu_parts import models
from gpu_parts.record import Case, Options, Record, quartiles, repeated
from service.engine.runtime import Runtime

PAIRS = ((512, 384), (512, 1), (64, 63))
SEARCHES = ("HEURISTIC", "EXHAUSTIVE", "DEFAULT")
RUNS = 20


def cases(_: Options) -> dict[str, Case]:
    """Encoder and decoder, by the engine's own session, and by each of ONNX Runtime's ways to choose a plan."""
    found: dict[str, Case] = {part: partial(alternate, part, "") for part in ("encoder", "decoder")}
    return found | {f"decoder, {search}": partial(alternate, "decoder", search) for search in SEARCHES}


def alternate(part: str, search: str, record: Record, options: Options) -> None:
    """Milliseconds of a run: one shape alone, the other, the two in turn, and the smaller padded to the larger."""
    graphs = models.load("small, resnet, bernoulli" if options.quick else "real, resnet, bernoulli", options)
    graph, name = getattr(graphs, part), "x" if part == "encoder" else "z"
    shape = graphs.description.image.chw if part == "encoder" else (graphs.description.latent_dim,)
    rng = np.random.default_rng(4)
    for large, small in PAIRS[2:] if options.quick else PAIRS:
        with record.attempt(f"{large} and {small} rows"):
            run = _engine(graph, options) if not search else _session(graph, search, options)
            rows = {count: rng.standard_normal((count, *shape), np.float32) for count in (large, small)}
            alone = {count: _milliseconds(run, name, [rows[count]], options) for count in rows}
            turns = _milliseconds(run, name, [rows[large], rows[small]], options)
            padded = np.concatenate([rows[small], np.zeros((large - small, *shape), np.float32)])
            same = _milliseconds(run, name, [rows[large], padded], options)
            record.row(
                "alternating",
                part=part,
                search=search or "engine's",
                shapes=f"{large}, {small}",
                first=alone[large]["median"],
                second=alone[small]["median"],
                in_turn=turns["median"],
                q1=turns["q1"],
                q3=turns["q3"],
                padded=same["median"],
                ratio=2 * turns["median"] / (alone[large]["median"] + alone[small]["median"]),
            )


def _milliseconds(run: Any, name: str, inputs: Iterable[NDArray[np.float32]], options: Options) -> dict[str, float]:
    """Of a run, the mean over some in turn; quartiles of repeats."""
    arrays = list(inputs)

    def turn() -> None:
        for array in arrays:
            run({name: array})

    taken = repeated(turn, repeats=options.size(RUNS, 2), seconds=options.size(3, 1), warm_up=options.size(3, 1))
    return quartiles([1000 * seconds / len(arrays) for seconds in taken])


def _engine(graph: bytes, options: Options) -> Any:
    from pathlib import Path

    return Runtime("cuda" if options.device == "cuda" else "cpu").open(graph, Path("resnet.onnx")).run


def _session(graph: bytes, search: str, options: Options) -> Any:
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": search})
    session = ort.InferenceSession(graph, providers=[cuda if options.device == "cuda" else "CPUExecutionProvider"])
    return partial(session.run, None)
