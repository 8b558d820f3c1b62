"""The threads that compute on a CPU: several runs of one computation at once, each on one thread.

The threads of ONNX Runtime itself share out every operator of a run, and wait for one another after each. Runs beside
one another wait once. Which thread makes a run changes no number.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
            Whatever `run` does; the other runs of the chunk have then ended too.
        """
        left = iter(pieces)
        while some := [*islice(left, self.size)]:
            for piece, outputs in zip(some, self._run(run, [inputs(piece) for piece in some]), strict=True):
                keep(piece, outputs)
            yield

    def _run(self, run: Callable[[Inputs], Outputs], inputs: Sequence[Inputs]) -> list[Outputs]:
        futures: list[Future[Outputs]] = []
        if self._helpers is not None:
            futures = [self._helpers.submit(run, one) for one in inputs[1:]]
        try:
            own = run(inputs[0])
        finally:
            for future in futures:
                future.exception()  # waits
        return [own, *(future.result() for future in futures)]
