"""Check keys. Without keys in the settings, everyone may send requests, and the admin routes are off.

A key is sent as `Authorization: Bearer KEY` or as `X-API-Key: KEY`. An admin key is valid for everything for which an
API key is valid, and for the admin routes. Only digests of keys are kept. A key is always compared with all of them, so
that the time does not depend on which one matches.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from service.web.problems import ForbiddenError, UnauthorizedError

_BEARER = HTTPBearer(auto_error=False)
_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False)
_Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
_Header = Annotated[str | None, Security(_HEADER)]


class Auth:
    """The keys of one service.

    >>> auth = Auth(keys=["sesame-sesame-sesame"], admin_keys=[])
    >>> auth.opens("sesame-sesame-sesame"), auth.opens("sesame"), auth.administers("sesame-sesame-sesame")
    (True, False, False)
    """

    def __init__(self, *, keys: Iterable[str], admin_keys: Iterable[str]) -> None:
        self._admin_keys = [_digest(key) for key in admin_keys]
        self._keys = [_digest(key) for key in keys]
        self.closed = bool(self._keys)
        """Whether requests need a key."""

    @property
    def administrable(self) -> bool:
        """Whether there is an admin key; without one the admin routes are off."""
        return bool(self._admin_keys)

    def opens(self, key: str) -> bool:
        """Whether this is an API key or an admin key."""
        return _among(key, [*self._keys, *self._admin_keys])

    def administers(self, key: str) -> bool:
        """Whether this is an admin key."""
        return _among(key, self._admin_keys)


async def require_key(request: Request, bearer: _Bearer, header: _Header) -> None:
    """FastAPI dependency of every route that needs a key.

    Raises:
        UnauthorizedError: neither header holds a key.
    """
    auth: Auth = request.app.state.auth
    if not any(auth.opens(key) for key in _given(bearer, header)):
        raise _unauthorized(bearer, header)


async def check_key(request: Request) -> None:
    """The same check without FastAPI's dependencies; raises what `require_key` raises."""
    await require_key(request, await _BEARER(request), await _HEADER(request))


async def require_admin(request: Request, bearer: _Bearer, header: _Header) -> None:
    """FastAPI dependency of every admin route: `dependencies=[Depends(require_admin)]`.

    Raises:
        ForbiddenError: the settings have no admin key, or the request's key is not an admin key.
        UnauthorizedError: neither header holds a key.
    """
    auth: Auth = request.app.state.auth
    if not auth.administrable:
        raise ForbiddenError("the admin routes are off: the service has no admin key")
    given = _given(bearer, header)
    if any(auth.administers(key) for key in given):
        return
    if any(auth.opens(key) for key in given):
        raise ForbiddenError("this key is not valid for the admin routes")
    raise _unauthorized(bearer, header)


def _given(bearer: HTTPAuthorizationCredentials | None, header: str | None) -> list[str]:
    return [key for key in (bearer.credentials if bearer else None, header) if key]


def _unauthorized(bearer: HTTPAuthorizationCredentials | None, header: str | None) -> UnauthorizedError:
    found = "no such key" if _given(bearer, header) else "the request has no key"
    return UnauthorizedError(f"{found}; send one as Authorization: Bearer KEY, or as X-API-Key: KEY")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _among(key: str, digests: Iterable[bytes]) -> bool:
    digest = _digest(key)
    return sum(hmac.compare_digest(digest, known) for known in digests) > 0  # any() would stop at the first match
