"""How the process's memory comes back: glibc keeps what was freed, in an arena for nearly every thread.

With its defaults, a process whose requests took 500 MB and are over keeps most of it; with these, a few per cent.
Where the C library is another, all of this does nothing.
"""

import asyncio
import ctypes

from service.web.memory_budget import Budget

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # of mallopt(3)
_ARENAS = 2
_LARGE_BYTES = 2**20
"""What is larger goes back to the system when it is freed; by default that bound grows to 32 MiB."""
_KEPT_BYTES = 2**24
"""Free at the heap's end, so that it does not shrink and grow all the time."""
_LOOK_SECONDS = 2.0
_PEAK_BYTES = 2**24


def tune_allocator() -> bool:
    """Few arenas, and large blocks from the system; to be called before threads start. Returns whether it took."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    wanted = {_ARENA_MAX: _ARENAS, _MMAP_THRESHOLD: _LARGE_BYTES, _TRIM_THRESHOLD: _KEPT_BYTES}
    return all(library.mallopt(option, value) for option, value in wanted.items())


def trim() -> None:
    """Give the system what is free in all arenas."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


async def trim_after_peaks(budget: Budget) -> None:
    """For ever: once requests held much and hold little, trim, beside the event loop."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if budget.peak > max(_PEAK_BYTES, 8 * budget.held):
            budget.peak = budget.held
            await asyncio.to_thread(trim)
