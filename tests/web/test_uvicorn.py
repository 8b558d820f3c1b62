"""What uvicorn's server gives the class that it is told to make of each connection (`http=`), and asks of it.

service/web/connections/ builds on this and on nothing else of uvicorn's: an upgrade that changes it fails here.
"""

import ast
import asyncio
import re
import socket
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

SERVICE = Path(__file__).parents[2] / "service"


class Recorded(asyncio.Protocol):
    """A connection that answers nothing, and records what is done with it."""

    made: list["Recorded"]

    def __init__(self, **given: Any) -> None:
        self.given = given
        self.shut_down = False
        self.task_has_ended = False
        self.made.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        state: ServerState = self.given["server_state"]
        cast(set[Any], state.connections).add(self)
        self.headers = list(state.default_headers)
        task = asyncio.get_running_loop().create_task(self.work())
        state.tasks.add(task)
        task.add_done_callback(state.tasks.discard)
        cast(asyncio.Transport, transport).write(b"hello")

    async def work(self) -> None:
        while not self.shut_down:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        self.task_has_ended = True

    def shutdown(self) -> None:
        """Asked for when the service ends."""
        self.shut_down = True
        self.transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        cast(set[Any], self.given["server_state"].connections).discard(self)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Takes part in the lifespan."""
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


@pytest.fixture
def ended() -> tuple[Recorded, uvicorn.Server]:
    """A connection to a server that has ended since."""
    Recorded.made = []
    config = uvicorn.Config(
        application,
        port=0,
        http=Recorded,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    server = uvicorn.Server(config)
    running = threading.Thread(target=server.run)
    running.start()
    while not server.started:
        assert running.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        assert client.recv(5) == b"hello"
        server.should_exit = True
        assert client.recv(1) == b""
    running.join(60)
    assert not running.is_alive()
    (made,) = Recorded.made
    return made, server


def test_the_server_gives_what_a_connection_takes_and_waits_for_what_it_began(
    ended: tuple[Recorded, uvicorn.Server],
) -> None:
    made, server = ended
    assert set(made.given) == {"config", "server_state", "app_state", "_loop"}
    assert made.given["config"] is server.config
    assert made.given["server_state"] is server.server_state
    assert made.given["app_state"] == {}
    assert made.shut_down
    assert made.task_has_ended  # before the server ended
    assert server.server_state.total_requests == 0
    ((name, date),) = made.headers
    assert name == b"date"
    assert re.fullmatch(rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date)
    config = server.config
    assert (config.loaded_app, config.asgi_version) == (application, "3.0")
    assert config.timeout_keep_alive == 5


def test_nothing_else_of_uvicorns_is_used() -> None:
    """Neither its own protocols nor what it calls private."""
    for file in SERVICE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uvicorn"):
                assert node.module == "uvicorn.server", file
                assert [alias.name for alias in node.names] == ["ServerState"], file
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names if alias.name.startswith("uvicorn")} <= {"uvicorn"}, file
