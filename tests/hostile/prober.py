"""Watches a service from a process of its own: `python -m tests.hostile.prober PORT PID`.

Told `start PATIENCE` on standard input it answers `watching`, and from then on asks for `/livez` every 10 ms on one
connection and looks at the memory of the process and its children every 50 ms; at the next line it answers with what it
saw, one line of JSON. A process of its own, because a thread beside an attack would measure how long the attacker kept
the interpreter.
"""

import json
import select
import socket
import sys
import time
from typing import Any

from tests.hostile.processes import family, memory

PAUSE = 0.01
LOOKS_EVERY = 0.05
KEPT_PROBLEMS = 5
QUESTION = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def ask(connection: socket.socket) -> str:
    """Nothing, or what was wrong with the answer."""
    connection.sendall(QUESTION)
    received = b""
    while not received.endswith(b'"alive"}'):
        if not (piece := connection.recv(65536)):
            return f"/livez hung up after {received[:100]!r}"
        received += piece
        if not received.startswith(b"HTTP/1.1 200 "[: len(received)]):
            return f"/livez answered {received[:100]!r}"
    return ""


def watch(port: int, pid: int, patience: float) -> dict[str, Any]:
    """Until standard input has a line, or ends: what was seen."""
    worst, overran, num_answers, most = 0.0, 0.0, 0, 0
    wrong: list[str] = []
    connection: socket.socket | None = None
    looked = float("-inf")
    ended = False
    while not ended:
        paused = time.monotonic()
        ended = bool(select.select([sys.stdin], [], [], PAUSE)[0])
        overran = max(overran, time.monotonic() - paused - PAUSE)
        started = time.monotonic()  # once after the end, too: what hangs by then is seen
        try:
            if connection is None:
                connection = socket.create_connection(("127.0.0.1", port), timeout=patience)
            problem = ask(connection)
        except TimeoutError:
            problem = f"/livez was not answered within {patience:g} s"
        except OSError as error:
            problem = f"/livez was not answered: {error}"
        answered = time.monotonic()
        worst = max(worst, answered - started)
        num_answers += not problem
        if problem:
            wrong.append(problem)
            if connection is not None:
                connection.close()
            connection = None
        if answered - looked > LOOKS_EVERY:
            most, looked = max(most, sum(memory(one, "VmRSS") for one in family(pid))), time.monotonic()
    if connection is not None:
        connection.close()
    seen = {"slowest": worst, "overran": overran, "num_answers": num_answers, "memory": most}
    return {**seen, "wrong": list(dict.fromkeys(wrong))[:KEPT_PROBLEMS]}


def main(port: int, pid: int) -> None:
    """Watch as often as told to."""
    while line := sys.stdin.readline():
        print("watching", flush=True)  # noqa: T201 (whoever started this waits for it)
        seen = watch(port, pid, float(line.split()[1]))
        sys.stdin.readline()
        print(json.dumps(seen), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
