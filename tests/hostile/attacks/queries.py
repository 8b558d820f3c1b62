"""Query parameters: models named as paths, numbers that are none or have no end, parameters by the thousand."""

from collections.abc import Iterator

from tests.hostile.attacks.attack import ANOMALY, ENCODE, MODELS, SAMPLES, Attack, gets, scores

NAMES = {
    "a path": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "NUL": "%00",
    "NUL after a right name": "digits%00",
    "a version's folder": "digits/1",
    "this folder": ".",
    "the folder above": "..",
    "8000 letters": "a" * 8000,
    "2600 letters in disguise": "%41" * 2600,
    "a change of writing direction": "%E2%80%AEdigits",
    "a new header": "%0d%0aSet-Cookie:x=1",
    "not UTF-8": "%ff%fe",
    "a space after it": "digits%20",
    "upper case": "DIGITS",
    "a hidden folder": ".publishing-digits",
    "a number that was given": ".given-digits-1",
    "terminal commands": "%1b[2J%1b]0;x%07",
    "a C1 control": "%c2%9b2J",
    "a template": "${jndi:ldap://x/a}",
    "a format": "%25s%25n",
    "full-width letters": "%EF%BD%84igits",
    "a lone surrogate": "%ED%A0%80",
}
NO_COUNTS = {
    "zero": "0",
    "negative": "-1",
    "an exponent": "1e0",
    "2 to the 31st": str(2**31),
    "2 to the 63rd": str(2**63),
    "8000 digits": "9" * 8000,
    "a full-width digit": "%EF%BC%91",
    "hexadecimal": "0x1",
    "no number": "NaN",
    "true": "true",
    "nothing": "",
    "a list": "[1]",
    "NUL": "1%00",
}
NOT_POSITIVE = {"zero": "0", "minus zero": "-0.0", "no number": "nan", "minus infinity": "-inf", "negative": "-1"}
MANY = "&".join(f"p{number}=" for number in range(1200))
LONG = {
    "a model named 20 000 letters": "model=" + "a" * 20_000,
    "a model named 9000 letters in disguise": "model=" + "%41" * 9000,
    "a version of 20 000 digits": "version=" + "9" * 20_000,
    "one method 1500 times": "method=" + ",".join(["log_likelihood"] * 1500),
    "20 000 methods without a name": "method=" + "," * 20_000,
    "4500 unknown parameters": "&".join(f"p{number}=" for number in range(4500)),
    "one parameter 9000 times": "&".join(["a="] * 9000),
    "30 000 separators": "&" * 30_000,
    "30 000 semicolons": ";" * 30_000,
}


def query_attacks() -> Iterator[Attack]:
    """Each one request."""
    for what, name in NAMES.items():
        yield scores(f"a model named {what}", 404, f"model={name}")
        yield scores(f"a model named {what}", 404, f"model={name}", ENCODE)
    for what, number in NO_COUNTS.items():
        yield scores(f"a version that is {what}", 422, f"version={number}", ENCODE)
        yield scores(f"samples that are {what}", (413, 422), f"num_samples={number}")
        yield gets(f"images that are {what}", (413, 422), f"{SAMPLES}?n={number}")
    for what, number in NOT_POSITIVE.items():
        yield scores(f"an error bar that is {what}", 422, f"max_std_error={number}")
        yield scores(f"an alpha that is {what}", 422, f"alpha={number}", ANOMALY)
        yield scores(f"a rate that is {what}", 422, f"fdr={number}", ANOMALY)
    for number in ("-1", str(2**53), str(2**64), "1e3", "9" * 5000):
        yield scores(f"the seed {number[:25]}", 422, f"seed={number}")
        yield gets(f"the seed {number[:25]} of samples", 422, f"{SAMPLES}?n=1&seed={number}")
    for number in ("nan", "inf", "-inf", "1e308", "100.0001", "-1e-300"):
        yield gets(f"the temperature {number}", 422, f"{SAMPLES}?n=1&temperature={number}")
    for number in ("0", "-0.0", "1e-400", "5e-324", "1e-40", "100"):
        yield gets(f"the temperature {number}, which there is", 200, f"{SAMPLES}?n=4&temperature={number}")
    for number in ("1e-320", "5e-324", "0.9999999999999999"):
        yield scores(f"the alpha {number}, which there is", 200, f"alpha={number}", ANOMALY)
    yield scores("the last seed", 200, f"seed={2**53 - 1}")
    yield scores("an error bar without end", 200, "max_std_error=inf")
    yield scores("as many samples as a number can say", 413, f"num_samples={2**31 - 1}")
    yield gets("more images than an answer may have", 413, f"{SAMPLES}?n={2**31 - 1}")
    yield scores("a version there is not", 404, "version=999999", ENCODE)
    yield scores("one method 500 times", 200, "method=" + ",".join(["log_likelihood"] * 500), ANOMALY)
    yield scores("8000 methods without a name", 422, "method=" + "," * 8000, ANOMALY)
    yield scores("a method of Python's", 422, "method=__class__", ANOMALY)
    yield scores("a form of a thousand brackets", 422, "as=" + "[" * 1000, ANOMALY)
    yield scores("both ways to decide", 422, "alpha=0.1&fdr=0.1", ANOMALY)
    yield scores("what the calibration fixes", 422, "num_samples=100000", ANOMALY)
    for what, query in LONG.items():
        yield scores(f"a long query: {what}", 414, query, ANOMALY)
    yield scores("1200 unknown parameters", 422, MANY)
    yield gets("1200 unknown parameters of a list", 422, f"{MODELS}?{MANY}")
    yield scores("one parameter 2700 times", 422, "&".join(["a="] * 2700))
    yield scores("99 parameters given twice", 422, "&".join(f"p{number % 50}=" for number in range(99)))
    yield scores("8000 separators", 422, "&" * 8000)
    yield scores("8000 semicolons", 422, ";" * 8000)
    yield scores("a query language", 422, "model[$ne]=1")
    yield scores("a prototype", 422, "__proto__=1&constructor=2")
    yield scores("a parameter after a NUL", 422, "model%00=digits")
    yield scores("a query of 40 000 bytes", 414, "model=" + "a" * 40_000)
