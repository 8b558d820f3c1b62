"""Where a request's seconds go: loading its model and reading its images, where those take any; the queue; the run."""

from typing import Any

from fastapi import Request

from service.web.middleware import observe
from service.web.outcome import Done


def note_load(request: Request, seconds: float) -> None:
    """Remember what loading took; the log and the trace have it as `load_seconds`."""
    if seconds:
        observe(request, load_seconds=round(seconds, 6))


def load_seconds(request: Request) -> float:
    """What loading took: 0 for most."""
    seconds: float = request.scope["observed"].get("load_seconds", 0.0)
    return seconds


def note_decode(request: Request, seconds: float) -> None:
    """Remember what waiting for its images to be read took; the log and the trace have it as `decode_seconds`."""
    observe(request, decode_seconds=round(seconds, 6))


def decode_seconds(request: Request) -> float:
    """What reading its images took: 0 where that was done at once."""
    seconds: float = request.scope["observed"].get("decode_seconds", 0.0)
    return seconds


def seconds_left(request: Request, timeout_seconds: float) -> float:
    """Of a request's deadline, what loading and reading have left for the queue and computing."""
    return max(0.0, timeout_seconds - load_seconds(request) - decode_seconds(request))


def server_timing(done: Done[Any]) -> dict[str, str]:
    """The header `Server-Timing`, in milliseconds."""
    before = {"load": done.load_seconds, "decode": done.decode_seconds}
    parts = {name: seconds for name, seconds in before.items() if seconds}
    parts |= {"queue": done.queue_seconds, "compute": done.compute_seconds}
    shown = [f"{name};dur={1000 * seconds:.3f}" for name, seconds in parts.items()]
    return {"Server-Timing": ", ".join(shown)}
