"""Two services behind nginx with deploy/nginx/logpx.conf, each restarted in turn under load: what is lost is counted.

python benchmarks/replicas.py [--nginx nginx] [--conf FILE] [--clients 4] [--rolls 2]

Services and nginx run in processes of their own, with the bundled models, on this machine. The ports of the file are
replaced by free ones, and nothing else of it. Lost is a request without an answer, with another status than 200, or
with another answer than the first service gives alone. Before the load, what the file says besides is tried: the page
and its files below the prefix, the routes that nobody outside may reach in several spellings, the largest body, lines
that stream.
"""

import argparse
import http.client
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from pathlib import Path

from load import ROOT, digits, npy
from running_service import start

FILE = ROOT / "deploy" / "nginx" / "logpx.conf"
PREFIX = "/logpx"
NPY = {"Content-Type": "application/x-npy"}
ROUTES = ("/v1/encode", "/v1/log-likelihood", "/v1/anomaly-scores")
MAIN = """worker_processes 2;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
access_log off;
{temporary}
{conf}
}}
"""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
CLOSED = (
    "/v1/admin/reload",
    "/v1//admin/reload",
    "/v1/admin/../admin/reload",
    "/%76%31/admin/reload",
    "/./v1/admin/reload",
    "/v2/repository/models/mnist/load",
)
SETTLED = 8  # answers of each client between two steps
Answer = tuple[int, bytes]


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
    return port


def configuration(file: Path, folder: Path, listens: int, ports: Sequence[int]) -> str:
    """nginx's whole configuration: the file with these ports, and everything that nginx writes in the folder."""
    conf = file.read_text().replace("listen 80;", f"listen 127.0.0.1:{listens};")
    for named, port in zip((8000, 8001), ports, strict=True):
        conf = conf.replace(f"127.0.0.1:{named}", f"127.0.0.1:{port}")
    temporary = "\n".join(f"{name}_temp_path {folder}/{name};" for name in TEMPORARY)
    return MAIN.format(folder=folder, temporary=temporary, conf=conf)


@contextmanager
def nginx(program: str, file: Path, ports: Sequence[int]) -> Iterator[int]:
    """The port on which it listens, before services on `ports`."""
    with tempfile.TemporaryDirectory() as name:
        folder, listens = Path(name), free_port()
        folder.chmod(0o755)
        (folder / "nginx.conf").write_text(configuration(file, folder, listens, ports))
        command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
        process = subprocess.Popen(command)
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", listens)).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            yield listens
        finally:
            process.terminate()
            process.wait()


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    """One request; status 0 where there was no answer."""
    try:
        connection.request(method, path, body or None, {**NPY, **headers} if body else headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return 0, repr(error).encode()


def try_the_rest(port: int) -> None:
    """What nginx's file says beside the balancing; each line is printed with what came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=130)
    page = ask(connection, "GET", f"{PREFIX}/")[1].decode()
    files = re.findall(r'(?:href|src)="([^"#]+)"', page)
    scripts = [link for link in files if link.endswith(".js")]
    for script in scripts:
        text = ask(connection, "GET", f"{PREFIX}/{script}")[1].decode()
        scripts += {f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', text)} - set(scripts)
    docs = ask(connection, "GET", f"{PREFIX}/docs")[1].decode()
    assets = re.findall(r'(?:href|src|url)(?:="|: \')(/[^"\']+)', docs)
    paths = [f"{PREFIX}/{link}" for link in {*files, *scripts}] + assets
    found = Counter(ask(connection, "GET", path)[0] for path in paths)
    print(f"{PREFIX} leads to {PREFIX}/: {ask(connection, 'GET', PREFIX)[0]}")
    print(f"the page, its {len(paths)} files and links, /docs and its: {dict(found)}")
    closed = Counter(ask(connection, "POST", PREFIX + path)[0] for path in CLOSED)
    print(f"admin routes in {len(CLOSED)} spellings: {dict(closed)}")
    print(f"/metrics: {ask(connection, 'GET', PREFIX + '/metrics')[0]}")
    large = npy(digits()[:1].repeat(21_000, axis=0))
    print(
        f"{len(large) / 2**20:.1f} MiB of digits, encoded: {ask(connection, 'POST', PREFIX + '/v1/encode', large)[0]}"
    )
    print(f"65 MiB: {ask(connection, 'POST', PREFIX + '/v1/encode', bytes(65 * 2**20))[0]}")
    lines = ask(connection, "POST", f"{PREFIX}/v1/log-likelihood", npy(digits()), Accept="application/x-ndjson")
    print(f"lines: {lines[0]}, {lines[1].count(bytes([10]))} of 100")


def roll(services: list["subprocess.Popen[str]"], ports: Sequence[int], counted: Counter[str], clients: int) -> None:
    """End each service and start it again; between the steps every client gets some answers."""

    def settle() -> None:
        until = counted.total() + SETTLED * clients
        while counted.total() < until:
            time.sleep(0.01)

    settle()
    for index, port in enumerate(ports):
        services[index].terminate()
        if services[index].wait() != 0:
            counted["a service ended with an error"] += 1
        settle()
        services[index], _ = start(LOGPX_PORT=str(port), LOGPX_ROOT_PATH=PREFIX)
        settle()


def load(
    port: int, expected: dict[tuple[str, bytes], bytes], first: int, done: threading.Event, counted: Counter[str]
) -> None:
    """One client, which sends nothing twice, until it is done."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=130)
    for (route, body), right in islice(cycle(expected.items()), first, None):
        if done.is_set():
            break
        status, content = ask(connection, "POST", PREFIX + route, body)
        counted["answered" if (status, content) == (200, right) else f"lost: {status}"] += 1


def end(services: list["subprocess.Popen[str]"]) -> None:
    """End those that run by then."""
    for service in services:
        service.terminate()
        service.wait()


def main() -> None:
    """Print what was asked and what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nginx", default="nginx")
    parser.add_argument("--conf", type=Path, default=FILE)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rolls", type=int, default=2)
    parsed = parser.parse_args()
    ports = [free_port(), free_port()]
    services = [start(LOGPX_PORT=str(port), LOGPX_ROOT_PATH=PREFIX)[0] for port in ports]
    with ExitStack() as running:
        running.callback(end, services)
        listens = running.enter_context(nginx(parsed.nginx, parsed.conf, ports))
        try_the_rest(listens)
        alone = [http.client.HTTPConnection("127.0.0.1", port, timeout=130) for port in ports]
        requests = [(route, npy(digits()[index : index + 1])) for index in range(20) for route in ROUTES]
        both = [[ask(connection, "POST", route, body) for route, body in requests] for connection in alone]
        print(f"{len(requests)} requests, answers of the two services are the same: {both[0] == both[1]}")
        expected = {request: content for request, (_, content) in zip(requests, both[0], strict=True)}
        counted: Counter[str] = Counter()
        done = threading.Event()
        with ThreadPoolExecutor(parsed.clients) as clients:
            for client in range(parsed.clients):
                clients.submit(load, listens, expected, 7 * client, done, counted)
            try:
                for _ in range(parsed.rolls):
                    roll(services, ports, counted, parsed.clients)
            finally:
                done.set()
        print(f"{parsed.rolls} rolls of two services under {parsed.clients} clients: {dict(counted)}")


if __name__ == "__main__":
    main()
