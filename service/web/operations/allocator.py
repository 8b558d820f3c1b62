"""Return freed memory to the system, which ONNX Runtime and glibc keep: glibc in an arena for nearly every thread.

With glibc's defaults, a process whose requests took 500 MB keeps most of it afterwards; with these settings, a few per
cent. With another C library, only ONNX Runtime's is returned.
"""

import asyncio
import ctypes

from service.engine.host_memory import release_arena
from service.web.memory_budget import Budget

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # of mallopt(3)
_ARENAS = 2
_LARGE_BYTES = 2**20
"""Larger blocks are returned to the system when freed. By default this limit grows up to 32 MiB."""
_KEPT_BYTES = 2**24
"""Free bytes kept at the heap's end, so that it does not shrink and grow all the time."""
_LOOK_SECONDS = 2.0
_PEAK_BYTES = 2**24


def tune_allocator() -> bool:
    """Use few arenas, and get large blocks from the system. Call before threads start. Returns whether it worked."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    wanted = {_ARENA_MAX: _ARENAS, _MMAP_THRESHOLD: _LARGE_BYTES, _TRIM_THRESHOLD: _KEPT_BYTES}
    return all(library.mallopt(option, value) for option, value in wanted.items())


def trim() -> None:
    """Return free memory of all arenas to the system."""
    release_arena()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


async def trim_after_peaks(budget: Budget) -> None:
    """For ever: trim, in another thread, when requests held much memory and now hold little."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if budget.peak > max(_PEAK_BYTES, 8 * budget.held):
            budget.peak = budget.held
            await asyncio.to_thread(trim)
