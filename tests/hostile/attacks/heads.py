"""Paths, methods and headers: traversal, overrides, ranges, forged addresses, keys, and headers that are too much."""

from collections.abc import Iterator

from tests.hostile.attacks.attack import ANOMALY, ENCODE, IMAGE, MODELS, NPY, Attack, asks, gets

ADMIN = "/v1/admin/reload"
FILE = "/static-offline-docs/swagger-ui-bundle.js"
NO_PATHS = {
    "two slashes first": "//v1/models",
    "two slashes within": "/v1//models",
    "a slash at the end": "/v1/models/",
    "upper case": "/V1/MODELS",
    "NUL at the end": "/v1/models%00",
    "a slash in disguise": "/v1/models%2f",
    "backslashes": "/\\v1\\models",
    "a parameter of old": "/v1/models;x=1",
    "a dot": "/v1/./models",
    "two dots": "/v1/admin/../models",
    "two dots in disguise": "/v1/admin/%2e%2e/models",
    "a percent sign": "/%",
    "not hexadecimal": "/%zz",
    "half a byte": "/v1/models%2",
    "8000 letters": "/" + "a" * 8000,
    "2700 letters in disguise": "/" + "%41" * 2700,
    "4000 folders": "/a" * 4000,
    "what scanners ask for": "/.env",
    "a page that is off": "/redoc",
    "the folder above the pages": "/docs/../../etc/passwd",
    "the folder above the files": "/static-offline-docs/../../../../etc/passwd",
    "the same, in disguise": "/static-offline-docs/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "the same, with slashes in disguise": "/static-offline-docs/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "the same, twice in disguise": "/static-offline-docs/%252e%252e/%252e%252e/etc/passwd",
    "the root of the files": "/static-offline-docs//etc/passwd",
    "the folder of the files": "/static-offline-docs/",
    "NUL in a file's name": "/static-offline-docs/swagger-ui.css%00.png",
    "a file's name of 300 letters": "/static-offline-docs/" + "a" * 300,
    "a file's path of 4000 folders": "/static-offline-docs/" + "a/" * 4000,
    "a file's path that goes down and up 1600 times": "/static-offline-docs/" + "a/../" * 1600 + "favicon.jpeg",
    "a file's name that is not UTF-8": "/static-offline-docs/%ff",
    "a model that is a path": "/v1/models/..%2f..%2fetc%2fpasswd",
    "a model that is the folder above": "/v1/models/%2e%2e",
    "a model of 8000 letters": "/v1/models/" + "a" * 8000,
    "a model that is not UTF-8": "/v1/models/%ff",
    "a model with a version's folder": "/v1/models/digits%2f1",
    "a model with a new header": "/v1/models/%0d%0aSet-Cookie:%20x=1",
    "a model with another direction": "/v1/models/%E2%80%AEdigits",
}
LONG_PATHS = {
    "30 000 letters": "/" + "a" * 30_000,
    "9000 letters in disguise": "/" + "%41" * 9000,
    "10 000 folders": "/a" * 10_000,
    "a file's path of 6000 folders": "/static-offline-docs/" + "a/" * 6000,
    "a model of 30 000 letters": "/v1/models/" + "a" * 30_000,
    "a model in a query of 30 000 letters": "/v1/models/digits?version=" + "1" * 30_000,
    "a right one with 9000 bytes behind it": "/v1/models?" + "a" * 9000,
}
METHODS = ("DELETE", "PUT", "PATCH", "TRACE", "OPTIONS")
UNKNOWN_METHODS = ("PROPFIND", "LOCK", "MKCOL", "PURGE", "SEARCH", "M-SEARCH", "LINK")
NO_DEADLINES = ("0", "-1", "1e9", "1_0", "0x10", "NaN", "", "\u0661", "1.5", "1 0", "x" * 10_000)
NO_FORMS = (
    *("text/html;q=nan", "*/*;q=nan", "*/*;q=-1", "*/*;q=0", ",", ";", ";;;,,,;q=", "*", "\xff", "*/*;q=\u0661"),
    *("x" * 30_000, ",".join(["a/b"] * 7000), "text/html" + ";q=1" * 7000, ",".join(["*/*;q=0"] * 3000)),
    *("," * 30_000, "a/b;" + ";" * 30_000, ",".join(f"application/json;v={n};q=0" for n in range(900))),
)
RANGES = {
    "one byte": "bytes=0-0",
    "the same bytes 5000 times": "bytes=" + ",".join(["0-"] * 5000),
    "3000 single bytes": "bytes=" + ",".join(f"{2 * number}-{2 * number}" for number in range(3000)),
    "overlapping ones": "bytes=" + ",".join(f"{number}-{number + 5}" for number in range(2000)),
    "beyond the end": "bytes=99999999999-",
    "backwards": "bytes=9-1",
    "of lines": "lines=1-2",
    "of 20 000 digits": "bytes=" + "9" * 20_000 + "-",
    "nothing": "bytes=",
    "not numbers": "bytes=a-b",
}
TYPES = {
    "": 415,
    "multipart/form-data": 422,
    "multipart/form-data; boundary=": 422,
    "multipart/form-data; boundary=" + "x" * 20_000: 422,
    'multipart/form-data; boundary="': 422,
    "multipart/form-data; boundary=\xff": 422,
    "application/json; charset=utf-16": 422,
    "image/svg+xml": 415,
    "application/x-www-form-urlencoded": 415,
    "application/x-npy, application/json": 415,
    "application/xml": 415,
    "\xff/\xff": 415,
    "x" * 30_000: 415,
}
KEYS = {
    "none": [],
    "an empty one": [("X-API-Key", "")],
    "a wrong one": [("X-API-Key", "admin-admin-admin-admiN")],
    "the beginning of a right one": [("X-API-Key", "admin-admin-admin-admi")],
    "a right one and more": [("X-API-Key", "admin-admin-admin-admin2")],
    "30 000 letters": [("X-API-Key", "a" * 30_000)],
    "a letter of another alphabet": [("X-API-Key", "\u0430dmin-admin-admin-admin")],
    "bytes": [("Authorization", "Bearer \udcff\udcfe")],
    "another scheme": [("Authorization", "Basic YWRtaW4tYWRtaW4tYWRtaW4tYWRtaW4=")],
    "a scheme without one": [("Authorization", "Bearer")],
    "in the query's form": [("Authorization", "Bearer=admin-admin-admin-admin")],
    "in a cookie": [("Cookie", "X-API-Key=admin-admin-admin-admin")],
    "in quotes": [("Authorization", 'Bearer "admin-admin-admin-admin"')],
    "under another name": [("X_API_Key", "admin-admin-admin-admin")],
    "all there are, in a list": [("X-API-Key", "admin-admin-admin-admin, second-second-second")],
}


def head_attacks() -> Iterator[Attack]:
    """Each one request, to a service with an admin key and without API keys."""
    for what, path in NO_PATHS.items():
        yield gets(f"a path: {what}", 404, path)
    for what, path in LONG_PATHS.items():
        yield gets(f"a long path: {what}", 414, path)
    yield gets("a right path in disguise", 200, "/v1/%6dodels")
    yield gets("a path of 40 000 bytes", 414, "/" + "a" * 40_000)
    for method in (*METHODS, *UNKNOWN_METHODS):
        statuses = (405,) if method in METHODS else (405, 501)
        yield asks(f"{method} of models", statuses, method, MODELS)
        yield asks(f"{method} of encode", statuses, method, ENCODE, IMAGE, NPY)
    yield gets("a method in a header", 200, MODELS, {"X-HTTP-Method-Override": "DELETE", "X-Method-Override": "PUT"})
    yield gets("a method in the query", 422, f"{MODELS}?_method=DELETE")
    for deadline in NO_DEADLINES:
        headers = {**NPY, "X-Request-Timeout-Ms": deadline}
        yield asks(f"the deadline {deadline[:20]!a}", 422, "POST", ENCODE, IMAGE, headers)
    for deadline in ("9" * 4000, "120000", " 99999"):
        headers = {**NPY, "X-Request-Timeout-Ms": deadline}
        yield asks(f"the deadline {deadline[:20]}, which there is", 200, "POST", ENCODE, IMAGE, headers)
    for form in NO_FORMS:
        yield asks(f"the form {form[:25]!a}", 406, "POST", ENCODE, IMAGE, {**NPY, "Accept": form})
    for form in ("*/*;q=inf", "*/*;q=1e999", "application/json" + ";a=b" * 7000):
        yield asks(f"the form {form[:25]}, which there is", 200, "POST", ENCODE, IMAGE, {**NPY, "Accept": form})
    for what, span in RANGES.items():
        yield gets(f"a range of a file: {what}", (200, 206, 400, 416), FILE, {"Range": span})
        yield gets(f"a range of an answer: {what}", 200, MODELS, {"Range": span})
    for name, value in {
        "If-None-Match": '"' * 20_000,
        "if-none-match": "," * 30_000,
        "If-Modified-Since": "x" * 20_000,
        "If-Range": "x",
    }.items():
        yield gets(f"{name} of nonsense", (200, 206), FILE, {name: value, "Range": "bytes=0-1"})
    for content_type, status in TYPES.items():
        named = {"Content-Type": content_type}
        yield asks(f"the content type {content_type[:40]!a}", status, "POST", ENCODE, IMAGE, named)
    for coding in ("gzip", "br", "gzip, gzip, gzip", "identity, gzip", "x" * 10_000):
        yield asks(f"the coding {coding[:20]}", 415, "POST", ENCODE, IMAGE, {**NPY, "Content-Encoding": coding})
    for identity in ("a" * 129, "a b", "${jndi:ldap://x}", "\u00e2", "a\tb", "' OR 1=1 --", "%0d%0aX:1", "x" * 20_000):
        yield gets(f"the id {identity[:20]!a}", 200, MODELS, {"X-Request-ID": identity})
    forged = {"Forwarded": "for=10.9.8.7;host=evil", "X-Forwarded-For": "10.9.8.7", "X-Real-IP": "10.9.8.7"}
    forged |= {"X-Forwarded-Host": "evil", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/evil", "Host": "evil"}
    yield gets("another's address", 200, MODELS, forged)
    yield gets("another's address for a page", 200, "/docs", forged)
    traced = {"traceparent": "x" * 5000, "tracestate": "y" * 5000, "baggage": "a=b," * 2000}
    yield gets("a trace of nonsense", 200, MODELS, traced)
    yield gets("a cookie of 30 000 bytes", 200, MODELS, {"Cookie": "a" * 30_000})
    yield gets("101 headers", 431, MODELS, [(f"X-{number}", "") for number in range(101)])
    yield gets("33 000 bytes of headers", 431, MODELS, [(f"X-{number}", "x" * 660) for number in range(50)])
    for origin in ("null", "https://evil.example", "https://ours.example.evil.example", "x" * 10_000):
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        yield asks(f"a preflight from {origin[:25]}", 400, "OPTIONS", ENCODE, headers=preflight)
    preflight = {"Origin": "https://ours.example", "Access-Control-Request-Method": "DELETE"}
    yield asks("a preflight for another method", 400, "OPTIONS", ENCODE, headers=preflight)
    preflight |= {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": ",".join(["x-a"] * 7000)}
    yield asks("a preflight for 7000 headers", 400, "OPTIONS", ENCODE, headers=preflight)
    for what, given in KEYS.items():
        yield asks(f"the admin's key: {what}", 401, "POST", ADMIN, headers=given)
    yield asks("the admin's key in the query", 401, "POST", f"{ADMIN}?key=admin-admin-admin-admin")
    yield asks("a reload by another path", 404, "POST", "/v1/admin//reload")
    yield gets("a reload by GET", 405, ADMIN, {"X-API-Key": "admin-admin-admin-admin"})
    yield asks("a body that a GET has", 200, "GET", MODELS, IMAGE, NPY)
    yield asks("a body with a HEAD", 200, "HEAD", MODELS, IMAGE, NPY)
    yield asks("scores without a body", 422, "POST", ANOMALY, b"", NPY)
