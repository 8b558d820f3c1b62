"""Text of others on a terminal: the names of files, and what clients send.

Such text may hold characters that a terminal obeys (colours, the cursor, the window's title), that turn the order of a
line round, or that nobody sees. They are written as a backslash and a number, so that a line says what it says.
"""

import io
import sys
from typing import Any, TextIO

from model_store import StoredModel, pin_notice, printable


def escaped(text: str, keep: str = "") -> str:
    r"""The text with a backslash and a number in place of each character that is not printable, or kept.

    >>> escaped("a\x1b[31m\u202eb\n"), escaped("a\n", keep="\n")
    ('a\\x1b[31m\\u202eb\\n', 'a\n')
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else repr(character)[1:-1] for character in text
    )


class Escaping:
    """A stream that escapes what is written to it, but for ends of lines and tabs.

    Args:
        stream: to write to; as `unescaped` also for what moves the cursor on purpose.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unescaped = stream

    def write(self, text: str) -> int:
        """Write the text, escaped."""
        self.unescaped.write(escaped(text, keep="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


def unescaped(stream: "TextIO | Escaping") -> TextIO:
    """The stream itself, where it is wrapped."""
    return stream.unescaped if isinstance(stream, Escaping) else stream


def print_any_name() -> None:
    """Let standard output and error take every name and sign.

    What is not printable, or their encoding lacks, is written as a backslash and a number.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        if stream is not None and not isinstance(stream, Escaping):
            setattr(sys, name, Escaping(stream))


def print_published(stored: StoredModel) -> None:
    """Say where a version was published and, if another one is pinned, that this one is not the default."""
    print(f"published {stored.path}")
    notice = pin_notice(stored.path.parent.parent, stored.manifest.name, stored.manifest.version)
    if notice is not None:
        print(printable(notice))
