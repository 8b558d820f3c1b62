"""Which size of request would have worked: what a refusal says besides the limit."""

from service.web.outcome import DeadlineError, QueueFullError
from service.web.problems import LimitError


def too_many_rows(rows: int, max_rows: int, images: int) -> LimitError:
    """For a request that asks for more rows than one may have.

    >>> str(too_many_rows(rows=8000, max_rows=1000, images=20))
    'images × samples is 8000; at most 1000 are accepted in a request: send at most 2 images at once'
    >>> str(too_many_rows(rows=8000, max_rows=1000, images=1))
    'images × samples is 8000; at most 1000 are accepted in a request: ask for fewer samples'
    """
    fewer = max_rows * images // rows
    advice = f"send at most {_counted(fewer)} at once" if fewer else "ask for fewer samples"
    return LimitError(f"images × samples is {rows}; at most {max_rows} are accepted in a request: {advice}")


def queue_full(error: QueueFullError, rows: int, free_rows: int, images: int) -> QueueFullError:
    """For a request that does not fit into the queue, of which so many rows are free.

    >>> str(queue_full(QueueFullError("3 requests are waiting; try again in 2 s", 2), 8000, 1000, 20))
    '3 requests are waiting; try again in 2 s, or now with at most 2 images'
    """
    fewer = free_rows * images // max(1, rows)
    return error if fewer < 1 else QueueFullError(f"{error}, or now with at most {_counted(fewer)}", error.retry_after)


def too_late(error: DeadlineError, rows: int, rows_per_second: float, seconds: float, images: int) -> DeadlineError:
    """For a request that is expected to take `rows` rows and was not computed within its deadline.

    >>> str(too_late(DeadlineError("not computed within 2 s"), 8000, 1000.0, 2.0, 20))
    'not computed within 2 s; of its 20 images about 5 would have been, with no other request: send fewer at once'
    >>> str(too_late(DeadlineError("not computed within 2 s"), 80, 1000.0, 2.0, 20))
    'not computed within 2 s: send fewer images at once, or allow more time'
    """
    fewer = int(rows_per_second * seconds * images / max(1, rows))
    if not 1 <= fewer < images:  # it waited for others, or for one image
        return DeadlineError(f"{error}: send fewer images at once, or allow more time")
    told = f"of its {_counted(images)} about {fewer} would have been, with no other request"
    return DeadlineError(f"{error}; {told}: send fewer at once")


def _counted(images: int) -> str:
    return f"{images} image" if images == 1 else f"{images} images"
