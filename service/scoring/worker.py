"""The process that scores shards: `python -m service.scoring.worker PARENT`.

It reads messages from its input and writes messages to its output (see images/decode_request.py for their form). The
first says which model and options; each other one is a shard. It answers each shard with some of `{"at": ROW}` and
`{"scored": ROWS}`, and at last `{"part": BYTES, "errors": COUNT}`, which the bytes of the Parquet file follow; or with
`{"refused": SENTENCE}` or `{"fault": TRACEBACK}`. It inherits no keys from its parent, and ends with it.
"""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from model_store import StoreError, open_version
from service.child_process import end_with
from service.images.decode_request import head, receive_head
from service.images.resampler import ResamplerError
from service.scoring.parts import table_bytes
from service.scoring.reading import Batch, batches, one_by_one
from service.scoring.scorer import Options, Scored, Scorer

_MAX_FAULT_CHARACTERS = 4000


def main(parent: int) -> int:
    """Answer messages until the input ends."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the parent decides
    warnings.simplefilter("ignore")  # nobody reads them, and a broken file may cause thousands
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is not taken for an answer
    start = receive_head(sys.stdin.buffer)
    if start is None:
        return 0
    with suppress(OSError):  # images are then said to be missing
        os.chdir(start["folder"])
    try:
        scorer = opened(start)
        scorer.model  # noqa: B018 (it is loaded now)
    except (StoreError, ResamplerError) as error:
        return _send(output, {"refused": str(error)})
    _send(output, {"ready": True})
    while (shard := receive_head(sys.stdin.buffer)) is not None:
        try:
            content, errors = score_shard(scorer, shard, lambda document: _send(output, document))
        except Exception:  # noqa: BLE001 - a fault of ours, of which the parent tells
            return _send(output, {"fault": traceback.format_exc()[-_MAX_FAULT_CHARACTERS:]})
        _send(output, {"part": len(content), "errors": errors}, content)
    return 0


def opened(start: Mapping[str, Any]) -> Scorer:
    """The model and options that a first message names; the version's files must still be the same.

    Raises:
        StoreError, ResamplerError: it cannot be opened.
    """
    stored = open_version(Path(start["store"]), start["model"], start["version"], digest=start["digest"])
    return Scorer.of(stored, Options(**start["options"]))


def score_shard(scorer: Scorer, shard: Mapping[str, Any], tell: Any) -> tuple[bytes, int]:
    """A shard's part, and how many of its images have no results.

    Args:
        scorer: with the model.
        shard: `rows`, the images; `metadata` of the file; `decided`, see `table_bytes`; `careful`, to say before each
            image is read which it is, for the parent to know at which one this process died; `lost`, by row the images
            at which it did, which are not read again.
        tell: is called with what the parent should know.
    """
    careful, lost = shard["careful"], {int(row): problem for row, problem in shard["lost"].items()}
    whole, found = Batch(), []

    def announced(some: Iterable[Batch]) -> Iterable[Batch]:
        reading = iter(some)
        while True:
            if careful and len(whole) not in lost:
                tell({"at": len(whole)})
            if (batch := next(reading, None)) is None:
                return
            yield batch

    for batch in announced(one_by_one(shard["rows"], lost) if careful else batches(shard["rows"], scorer.batch_images)):
        found.append(scorer.score(batch.contents))
        whole.paths += batch.paths
        whole.indices += batch.indices
        tell({"scored": len(whole)})
    scored = joined(found)
    errors = [*scored.errors]
    content = table_bytes(
        whole.paths, whole.indices, scored.columns, errors, shard["metadata"], decided=shard["decided"]
    )
    return content, sum(error is not None for error in errors)


def joined(parts: list[Scored]) -> Scored:
    """The results of several batches as one."""
    names = parts[0].columns
    return Scored(
        {name: np.concatenate([part.columns[name] for part in parts]) for name in names},
        [error for part in parts for error in part.errors],
    )


def _send(output: BinaryIO, document: dict[str, Any], content: bytes = b"") -> int:
    output.write(head(document) + content)
    output.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
