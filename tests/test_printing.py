import io
import sys
from pathlib import Path

import pytest

from service.printing import Escaping, escaped, print_any_name, unescaped
from service.progress import Progress

UNSEEN = [
    *map(chr, range(32)),
    *map(chr, range(0x7F, 0xA1)),
    *"\xad\u061c\u200b\u200e\u200f\u2028\u2029\ufeff\U000e0041",
]
UNSEEN += [*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2060, 0x2070)), "\ud800", "\ue000"]


@pytest.mark.parametrize("character", UNSEEN, ids=ascii)
def test_what_a_terminal_obeys_or_nobody_sees_is_escaped(character: str) -> None:
    shown = escaped(f"a{character}b")
    assert shown.isprintable()
    assert shown == f"a{ascii(character)[1:-1]}b"


def test_signs_and_letters_of_every_script_stay() -> None:
    for text in ("", "a b", "naïve", "数字", "نص", "−±×→😀", "a\\x1b"):
        assert escaped(text) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_name_that_is_printed_cannot_move_the_cursor_and_progress_can(monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = {"stdout": Terminal(), "stderr": Terminal()}
    for name, terminal in terminals.items():
        monkeypatch.setattr(sys, name, terminal)
    for _ in range(2):
        print_any_name()
    file = Path("evil\x1b]0;title\x07\r\u202egpj.exe\nok")
    print(f"error: {file}")  # noqa: T201
    print(f"error: {file}", file=sys.stderr, flush=True)  # noqa: T201
    line = "error: evil\\x1b]0;title\\x07\\r\\u202egpj.exe\nok\n"
    assert [terminal.getvalue() for terminal in terminals.values()] == [line, line]
    now = 0.0
    with Progress("scoring", 2, clock=lambda: now) as progress:
        now = 5.0
        progress.advance(1)
    assert terminals["stderr"].getvalue().startswith(line + "\r\x1b[Kscoring: 1 of 2")


def test_a_wrapped_stream_is_the_stream_in_all_else() -> None:
    stream = io.StringIO()
    wrapped = Escaping(stream)
    assert wrapped.write("\x9b\n") == 2
    assert stream.getvalue() == "\\x9b\n"
    assert unescaped(wrapped) is stream
    assert unescaped(stream) is stream
    assert (wrapped.isatty(), Escaping(Terminal()).isatty()) == (False, True)
    wrapped.flush()
