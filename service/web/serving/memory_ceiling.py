"""The most memory that the service's processes can use with its settings; a container needs at least as much.

    resident    code and weights, measured once the models are loaded
    graphs      memory that each model's graphs keep after their largest run
    requests    `LOGPX_MAX_MEMORY_BYTES`, see memory_budget.py and batch_queue.py
    connections `LOGPX_MAX_CONNECTIONS`, each with what is not counted in memory_budget.py
    decoders    `LOGPX_DECODERS` processes beside this one, and a spare one
    versions    that are loaded later, by a reload or because a request asks for them: by the size of their files

A version that a reload has replaced comes on top until the last request that computes with it ends.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from service.engine.model import Model
from service.web.connections.connection_limit import MAX_RESERVE
from service.web.decoding.process_pool import decoder_memory_bytes
from service.web.memory_budget import FREE_BYTES, SENT_AT_ONCE, computing_bytes
from service.web.operations.settings import Settings

CONNECTION_BYTES = FREE_BYTES + SENT_AT_ONCE + 2**18 + 2**16 + 2**16
"""Bytes of one connection: a request or answer too small to be counted, a piece being sent, buffers for reading, and
the objects for these."""
DECODER_CODE_BYTES = 2**26
_VERSION_BYTES = 2**24
_BYTES_A_GRAPH_BYTE = 13
"""A version's sessions hold its weights several times: with the bundled models 8.5 and 9.5 times the graphs' files,
and the graph of gradients up to three times more: its weights, and those laid out for each of two directions."""
FRAGMENTED_SHARE = 1 / 8
"""The fraction of the requests' memory that the allocator may need in addition."""


def service_ceiling(settings: Settings, models: Iterable[Model], resident: int, later: Iterable[Model] = ()) -> int:
    """Bytes that the service's own process can have.

    Args:
        settings: the bounds.
        models: those in memory.
        resident: bytes that it had before requests came, with the models loaded that there were then.
        later: those of `models` that have been loaded since.
    """
    loaded = list(models)
    graphs = sum(model.run_bytes for model in loaded)
    quarter = computing_bytes(settings.max_memory_bytes)
    largest = max((model.estimates_bytes(settings.max_rows, 1) for model in loaded), default=0)
    samples = max((model.estimates_bytes(1, settings.max_num_samples) for model in loaded), default=0)
    requests = settings.max_memory_bytes - quarter + max(quarter, largest, samples) + quarter // 8
    connections = (settings.max_connections + MAX_RESERVE) * CONNECTION_BYTES
    resident += sum(_VERSION_BYTES + _BYTES_A_GRAPH_BYTE * model.graph_bytes for model in later)
    return resident + graphs + int(requests * (1 + FRAGMENTED_SHARE)) + connections


def decoders_ceiling(settings: Settings) -> int:
    """The most bytes that all processes that read image files can use together."""
    if not settings.decoders:
        return 0
    each = DECODER_CODE_BYTES + decoder_memory_bytes(settings.max_pixels, settings.max_body_bytes)
    return settings.decoders * each + DECODER_CODE_BYTES


def resident_bytes() -> int:
    """Bytes that this process uses now; 0 if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
