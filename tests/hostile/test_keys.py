"""A closed service behind a prefix: no path, method, header or encoding gets in without a key, and none tells one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.attacks.attack import ENCODE, IMAGE, MODELS, NPY
from tests.hostile.attacks.heads import ADMIN, KEYS
from tests.hostile.harness import ChildService, reference_request, watched

KEY, ADMIN_KEY = "client-client-client", "admin-admin-admin-admin"
PREFIX = "/logpx"
CLOSED = (MODELS, f"{MODELS}/digits", "/v1/samples?n=1", "/metrics")
RIGHT = {"X-API-Key": KEY}
DISGUISES = (
    *(
        "/{0}",
        "//{0}",
        "/./{0}",
        "/x/../{0}",
        "/logpx{1}",
        "/logpx/logpx{1}",
        "/logpx/{1}",
        "/logpx//{0}",
        "/logpx/..{1}",
    ),
    *("/{0}/", "/{0}%00", "/{0}%20", "/{0};", "/{0}%2f", "/{0}.json", "/%2f{0}", "/docs/..{1}", "/livez/..{1}"),
    *("/static-offline-docs/..{1}", "/static-offline-docs/%2e%2e{1}", "/livez%3f/..{1}", "/%6c%6f%67%70%78{1}"),
)
"""Of a path, {0} without its first slash and {1} with it."""


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[ChildService]:
    with ChildService(store, model="digits", api_keys=KEY, admin_keys=ADMIN_KEY, root_path=PREFIX) as started:
        yield started


@pytest.fixture(autouse=True)
def watch(service: ChildService) -> Iterator[None]:
    method, path, body, headers = reference_request()
    with watched(service, reference=(method, path, body, {**dict(headers), **RIGHT})):
        yield


@pytest.mark.parametrize("path", CLOSED)
def test_the_right_key_opens_by_every_path_that_there_is(service: ChildService, path: str) -> None:
    for prefix in ("", PREFIX):
        for key in (RIGHT, {"Authorization": f"Bearer {ADMIN_KEY}"}):
            assert service.ask("GET", prefix + path, headers=key).status == 200
        assert service.ask("GET", prefix + path).status == 401


@pytest.mark.parametrize("what", KEYS)
def test_no_other_key_opens(service: ChildService, what: str) -> None:
    for path in CLOSED:
        assert service.ask("GET", path, headers=KEYS[what]).status == 401
    assert service.ask("POST", ENCODE, IMAGE, [*NPY.items(), *KEYS[what]]).status == 401
    assert service.ask("POST", ADMIN, headers=KEYS[what]).status == 401


def test_a_clients_key_is_no_admins(service: ChildService) -> None:
    assert service.ask("POST", ADMIN, headers=RIGHT).status == 403
    for more in ({"X-Admin": "true"}, {"X-Original-URL": ADMIN}, {"X-Rewrite-URL": ADMIN}, {"X-HTTP-Method": "POST"}):
        assert service.ask("POST", ADMIN, headers={**RIGHT, **more}).status == 403
        assert service.ask("GET", "/livez", headers={**RIGHT, **more}).json() == {"status": "alive"}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_no_disguise_of_a_path_opens(service: ChildService, disguise: str) -> None:
    for path in CLOSED:
        disguised = disguise.format(path[1:], path)
        for method in ("GET", "HEAD", "POST", "OPTIONS", "PUT"):
            answer = service.ask(method, disguised)
            assert answer.status in (401, 404, 405), disguised
            assert answer.problem or method == "HEAD"
    for method in ("POST", "GET", "PUT"):
        assert service.ask(method, disguise.format(ADMIN[1:], ADMIN), headers=RIGHT).status in (403, 404, 405)


def test_keys_stand_nowhere(service: ChildService) -> None:
    """Runs last in the module, when all of the above is in the log."""
    told = [service.ask("GET", path, headers=RIGHT).body.decode() for path in (*CLOSED, "/openapi.json", "/docs")]
    for text in (service.log(), *told):
        assert KEY not in text
        assert ADMIN_KEY not in text
        assert "second-second-second" not in text
