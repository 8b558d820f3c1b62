"""What all processes that the service starts have in common: the variables they get, and that they end with it."""

import ctypes
import os
import signal
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
ROOT = Path(__file__).parents[1]
"""Where the service's code is, with which its processes begin to look for theirs."""


def environment_of_child(
    variables: Mapping[str, str], *, kept: Collection[str], beginnings: tuple[str, ...] = (), added: Mapping[str, str]
) -> dict[str, str]:
    """What a process needs to find its code, and nothing of the service's, which has keys in it.

    Args:
        variables: the service's own.
        kept: names of those that the process gets too.
        beginnings: of such names.
        added: what it gets beside them.

    >>> child = environment_of_child({"PATH": "/bin", "LOGPX_API_KEYS": "k"}, kept=["PATH"], added={"TZ": "UTC"})
    >>> child["PATH"], child["TZ"], "LOGPX_API_KEYS" in child
    ('/bin', 'UTC', False)
    """
    found = {name: value for name, value in variables.items() if name in kept or name.startswith(beginnings)}
    given = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
    paths = [ROOT, *map(Path, given)]  # a process may begin in another folder
    return {**found, **added, "PYTHONPATH": os.pathsep.join(str(path.resolve()) for path in paths)}


def end_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Be killed when the thread that has started this process ends, or end now if it has ended already.

    The kernel sees to it on Linux; elsewhere the end of the process's input is its end.

    Args:
        parent: the number of the process that has started this one.
        by: the signal that this process gets.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        sys.exit(1)
