"""One of several services on a port: `python -m service.shared_port PARENT PORT OWN_PORT CORES ready|at-once`.

service/processes.py starts it, and ends it; if that process is gone, this one finishes what it accepted and ends.
"""

import os
import signal
import socket
import sys

import structlog

from service.child_process import end_with
from service.processes import open_shared
from service.serve import serve
from service.web.operations.settings import Settings


def main(parent: str, port: str, own_port: str, cores: str, when: str) -> int:
    """Serve at both ports; returns the exit status."""
    end_with(int(parent), signal.SIGTERM)
    if cores:
        os.sched_setaffinity(0, map(int, cores.split(",")))

    def listeners(settings: Settings) -> list[socket.socket]:
        opened = [open_shared(settings.host, int(port)), open_shared(settings.host, int(own_port))]
        ports = [one.getsockname()[1] for one in opened]
        structlog.get_logger().info("one of several", shared_port=ports[0], own_port=ports[1], cores=cores)
        return opened

    return serve(listeners, load_first=when == "ready")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
