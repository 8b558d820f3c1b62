"""The worker, but it dies where a test wants it to: at images whose name says so, or before it is ready."""

import os
import signal
import sys
import time
from pathlib import Path

from service.scoring import reading
from service.scoring.worker import main

read = reading._file


def read_or_die(path: str) -> reading.Content:
    """Read a file; `fatal` always ends this process, `once` the first one, and `slow` takes ten minutes."""
    if "fatal" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "once" in path and not (mark := Path(f"{path}.read")).exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "slow" in path:
        time.sleep(600)
    return read(path)


if __name__ == "__main__":
    mode, parent = sys.argv[1:]
    if mode == "at once":
        os.kill(os.getpid(), signal.SIGKILL)
    reading._file = read_or_die
    sys.exit(main(int(parent)))
