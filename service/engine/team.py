"""The threads that compute on a CPU: several runs of one computation at once, each on one thread.

The threads of ONNX Runtime itself share out every operator of a run, and wait for one another after each. Runs beside
one another wait once. Which thread makes a run changes no number.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from numpy.typing import NDArray
from onnxruntime import OrtValue

from service.engine.chunks import Chunks

Inputs = Mapping[str, "NDArray[Any] | OrtValue"]
Outputs = dict[str, NDArray[Any]]
P = TypeVar("P")


class Team:
    """The thread that calls, and others that help it; they start when they are first needed.

    Any thread may call, also while another does: the helpers then take turns.

    Args:
        size: runs that are made at once, at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._helpers = ThreadPoolExecutor(size - 1, "inference-helper") if size > 1 else None

    def each(
        self,
        run: Callable[[Inputs], Outputs],
        pieces: Iterable[P],
        inputs: Callable[[P], Inputs],
        keep: Callable[[P, Outputs], None],
    ) -> Chunks[None]:
        """Run on each of the pieces, `size` of them in a chunk; `inputs` and `keep` are called by the calling thread.

        Raises:
            Whatever `run` does; those of the other runs of the chunk that have begun have then ended too.
        """
        left = iter(pieces)
        while some := [*islice(left, self.size)]:
            for piece, outputs in zip(some, self._run(run, [inputs(piece) for piece in some]), strict=True):
                keep(piece, outputs)
            yield

    def _run(self, run: Callable[[Inputs], Outputs], inputs: Sequence[Inputs]) -> list[Outputs]:
        """The caller makes the first run, and then those that no helper has begun: these may have no core of theirs."""
        waiting: list[list[Callable[[], Outputs]]] = [[partial(run, one)] for one in inputs[1:]]
        futures: list[Future[Outputs]] = []
        if self._helpers is not None:
            futures = [self._helpers.submit(_made, one) for one in waiting]
        own: dict[int, Outputs] = {}
        try:
            own[0] = run(inputs[0])
            for index in range(len(futures), 0, -1):
                if futures[index - 1].cancel():
                    own[index] = _made(waiting[index - 1])
        finally:
            for future, one in zip(futures, waiting, strict=True):
                if future.cancel():
                    one.clear()
                else:
                    future.exception()  # waits
        return [own[index] if index in own else futures[index - 1].result() for index in range(len(inputs))]


def _made(waiting: list[Callable[[], Outputs]]) -> Outputs:
    """What the one run gives. Taken out, so that a helper's thread, which keeps its argument, keeps no session."""
    return waiting.pop()()
