"""The form of problem documents: that of RFC 9457, and on `/v2` that of the Open Inference Protocol."""

from typing import Any

from starlette.types import Scope

PROBLEM_JSON = "application/problem+json"


def is_open_inference(path: str) -> bool:
    """Whether a path, without the prefix of a proxy, is one of the Open Inference Protocol.

    >>> is_open_inference("/v2"), is_open_inference("/v2/health/live"), is_open_inference("/v2x")
    (True, True, False)
    """
    return path.startswith("/v2") and path[3:4] in ("", "/")


def own_path(scope: Scope) -> str:
    """The path of a request, without the prefix of a proxy."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def problem_form(path: str, detail: str) -> tuple[str, dict[str, Any]]:
    """The content type of a problem document, and the members that it has there besides its usual ones.

    Clients of the Open Inference Protocol show the member `error`, and some only if the content type is exactly this.

    >>> problem_form("/v2/models/mnist.encode/infer", "no input")
    ('application/json', {'error': 'no input'})
    """
    return ("application/json", {"error": detail}) if is_open_inference(path) else (PROBLEM_JSON, {})


def shortened(text: str, most: int) -> str:
    """Shorten a text to at most this many characters, with an ellipsis at its end.

    >>> shortened("unknown", 7), shortened("unknown", 4)
    ('unknown', 'unk…')
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"
