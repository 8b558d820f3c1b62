"""Read the environment variables that begin with LOGPX_: settings, and warnings about others.

A misspelt setting would be ignored silently, and with a misspelt key the service would accept everyone. So variables
that are not settings are named in the log, and those that look like keys prevent the start. Variables with this prefix
that Kubernetes and this repository's own files set for other purposes are ignored.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from itertools import combinations

PREFIX = "LOGPX_"
ELSEWHERE = frozenset({"LOGPX_PUBLISH", "LOGPX_PUBLISH_GPU", "LOGPX_PUBLISH_GRAFANA"})
"""Variables of docker-compose.yml, which the service does not read."""
_SERVICE = r"LOGPX(_[A-Z0-9_]+)?"
_OF_KUBERNETES = re.compile(
    rf"{_SERVICE}_SERVICE_HOST|{_SERVICE}_SERVICE_PORT(_[A-Z0-9_]+)?|{_SERVICE}_PORT_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?"
)
"""Variables, except `…_PORT`, that Kubernetes sets in containers for each Service named `logpx…`."""
_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*", re.IGNORECASE)
"""The value of Kubernetes' `…_PORT`."""
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH(_|$)")
_SIMILAR = 0.75
_SIMILAR_PREFIX = 0.8


@dataclass(frozen=True)
class Notice:
    """A sentence about one variable, which never contains its value."""

    variable: str
    sentence: str


@dataclass(frozen=True)
class Environment:
    """The contents of the environment.

    Attributes:
        values: by setting in lower case, without surrounding white space; empty ones are left out.
        warnings: variables that are not settings.
        ignored: variables with the name of a setting that another program sets.
        refusals: variables that prevent the start.
    """

    values: Mapping[str, str]
    warnings: tuple[Notice, ...]
    ignored: tuple[Notice, ...]
    refusals: tuple[Notice, ...]


def read_environment(environment: Mapping[str, str], settings: Collection[str]) -> Environment:
    """Classify the variables; `settings` are the settings' names in lower case. Case does not matter.

    An empty variable counts as unset, except if it is for keys, because whoever sets it wants the service protected.

    >>> found = read_environment({"LOGPX_PROT": "9000", "LOGPX_HOST": ""}, ["host", "port"])
    >>> found.values, found.warnings[0].sentence
    ({}, 'is no setting; did you mean LOGPX_PORT?')
    """
    known = {PREFIX + name.upper(): name for name in settings}
    values: dict[str, str] = {}
    warnings, ignored, refusals = [], [], []
    for variable, text in sorted(environment.items()):
        name, value = variable.upper(), text.strip()
        if name in known:
            if name.endswith("_PORT") and _ADDRESS.fullmatch(value):
                ignored.append(
                    Notice(variable, "Kubernetes sets it so for a Service of this name; the port is the default")
                )
            elif value:
                values[known[name]] = value
            elif is_of_keys(name):
                refusals.append(Notice(variable, "is empty: unset it, or give it a key"))
        elif _begins_like_ours(name, known) and not _is_set_by_others(name, value):
            meant = _meant(name, filter(is_of_keys, known) if _SECRET.search(name) else known)
            asks = f"; did you mean {meant}?" if meant else "; docs/operations.md lists them all"
            if _SECRET.search(name) or (meant is not None and is_of_keys(meant)):
                refusals.append(Notice(variable, f"is no setting, so it would not close the service{asks}"))
            else:
                warnings.append(Notice(variable, f"is no setting{asks}"))
    return Environment(values, tuple(warnings), tuple(ignored), tuple(refusals))


def is_of_keys(variable: str) -> bool:
    """Whether a setting contains keys or names their file; its value is never printed."""
    return "_KEYS" in variable.upper()


def _begins_like_ours(name: str, known: Collection[str]) -> bool:
    """Whether a variable has our prefix, or a similar prefix before the exact name of a setting."""
    head, _, rest = name.partition("_")
    similar = SequenceMatcher(None, head, PREFIX[:-1]).ratio() >= _SIMILAR_PREFIX
    return name.startswith(PREFIX[:-1]) or (similar and PREFIX + rest in known)


def _is_set_by_others(name: str, value: str) -> bool:
    of_port = name.endswith("_PORT") and _ADDRESS.fullmatch(value)
    return name in ELSEWHERE or bool(_OF_KUBERNETES.fullmatch(name) or of_port)


def _meant(name: str, settings: Iterable[str]) -> str | None:
    """The setting that begins with this name, or has words that are spelt like it, or as a whole is spelt like it.

    Not by a few of their words for keys: a variable that may be meant for keys prevents the start.
    """
    candidates = sorted(settings, key=len)
    longer = [setting for setting in candidates if setting.startswith(f"{name}_")]
    by_words = _with_similar_words(name, [setting for setting in candidates if not is_of_keys(setting)])
    return next(iter([*longer, *by_words, *get_close_matches(name, candidates, 1, _SIMILAR)]), None)


def _with_similar_words(name: str, settings: Iterable[str]) -> list[str]:
    """Those with words in a row that are spelt like the name without its prefix, the most similar first.

    >>> _with_similar_words("LOGPX_STOER", ["LOGPX_PORT", "LOGPX_MODEL_STORE"])
    ['LOGPX_MODEL_STORE']
    """
    own = re.sub(r"^(LOGPX_?|[^_]*_)", "", name)

    def similarity(setting: str) -> tuple[float, float]:
        words = setting.removeprefix(PREFIX).split("_")
        rows = ["_".join(words[i:j]) for i, j in combinations(range(len(words) + 1), 2)]
        return max(SequenceMatcher(None, own, row).ratio() for row in rows), SequenceMatcher(
            None, name, setting
        ).ratio()

    similarities = {setting: similarity(setting) for setting in settings}
    near = [setting for setting, (of_words, _) in similarities.items() if of_words >= _SIMILAR]
    return sorted(near, key=similarities.__getitem__, reverse=True)
