"""What Linux tells of a process and of those it started: memory, open files, children. Only the standard library."""

import os
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """The process, its descendants, and what else runs in the session that it began; sorted."""
    parents: dict[int, int] = {}
    found = {pid}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()  # a command's name may hold anything
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
                if int(fields[3]) == pid:
                    found.add(int(entry.name))
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found & parents.keys())


def runs(pid: int, module: str) -> bool:
    """Whether it is `python -m module`; not, once it has ended."""
    try:
        return module.encode() in (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def memory(pid: int, field: str) -> int:
    """Bytes: `VmRSS` resident now, `VmHWM` the most so far; 0 once the process has ended."""
    try:
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def reset_peak(pid: int) -> None:
    """Let `VmHWM` begin anew at what is resident now."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        (PROC / str(pid) / "clear_refs").write_text("5")


def open_files(pid: int) -> list[str]:
    """What each descriptor is, like `socket:[123]` or a path."""
    found = []
    for entry in (PROC / str(pid) / "fd").iterdir():
        try:
            found.append(os.readlink(entry))  # noqa: PTH115 (Path.readlink would shorten what is no path)
        except FileNotFoundError:
            continue  # closed meanwhile
    return found
