"""Small writes wait for what else is ready in the event loop, to logs and to sockets; none is lost or out of order."""

import asyncio
import io
from typing import Any, cast

from service.web.connection import Corked
from service.web.logs import Output


class Written:
    """Stands in for a transport: what it was asked for, in order."""

    def __init__(self) -> None:
        self.calls: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("closed")

    def is_closing(self) -> bool:
        return self.calls[-1:] == ["closed"]


def test_small_writes_of_one_turn_leave_together_and_large_ones_at_once() -> None:
    async def scenario() -> list[bytes | str]:
        written, loop = Written(), asyncio.get_running_loop()
        corked: Any = Corked(cast(asyncio.Transport, written), loop)
        corked.write(b"head ")
        corked.write(b"body")
        assert written.calls == []
        await asyncio.sleep(0)
        corked.write(b"head ")
        corked.write(b"x" * 2**15)
        corked.write(b"last")
        corked.close()
        assert corked.is_closing()
        await asyncio.sleep(0)
        return written.calls

    assert asyncio.run(scenario()) == [b"head body", b"head ", b"x" * 2**15, b"last", "closed"]


def test_log_lines_of_one_turn_are_written_together_and_without_a_loop_at_once() -> None:
    stream = io.StringIO()
    output = Output(stream)

    async def scenario() -> None:
        output.write("first\n")
        output.write("second\n")
        assert stream.getvalue() == "at once\n"
        await asyncio.to_thread(output.write, "from a thread\n")
        assert stream.getvalue() == "at once\nfirst\nsecond\nfrom a thread\n"
        output.write("third\n")

    output.write("at once\n")
    asyncio.run(scenario())
    assert stream.getvalue().endswith("third\n")
