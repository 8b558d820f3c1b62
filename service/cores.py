"""Which cores, and how many, this process may use: a container often has fewer than its machine."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def affinity() -> set[int]:
    """The numbers of the cores on which this process may run; none where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def usable_cores(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Cores that the scheduler may choose from, or as many as the cgroup's quota of time pays for, if fewer.

    The quota is the smallest of the process's cgroup and those it lies in, rounded up (cgroup version 2: `cpu.max`;
    version 1: `cpu.cfs_quota_us`). What cannot be read sets no limit.

    >>> usable_cores() >= 1
    True
    """
    cores = len(affinity()) or os.cpu_count() or 1
    quotas = [quota for folder in _folders(cgroups, own) if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def _folders(cgroups: Path, own: Path) -> list[Path]:
    """The cgroup folders, of both versions, in which a quota of this process could be."""
    try:
        lines = own.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    folders = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in [cgroups / controllers, cgroups / "cpu"] if controllers else [cgroups]:
            inside = root / path.lstrip("/")
            folders += [inside, *(parent for parent in inside.parents if parent.is_relative_to(root))]
    return folders


def _quota(folder: Path) -> float | None:
    """Cores of time that a cgroup may take; None where it sets no limit."""
    try:
        if (found := folder / "cpu.max").exists():
            quota, period = found.read_text().split()[:2]
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # `max` is no number
        return None
    return cores if cores > 0 else None
