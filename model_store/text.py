r"""Which characters a manifest's texts may hold, and how texts that hold others are shown.

Left out are those that change how what is around them is shown, or cannot be written at all: control characters (but
for line feeds and tabs, which JSON escapes wherever it is written), the marks and overrides of writing direction, line
and paragraph separators, and single halves of surrogate pairs, which no UTF-8 has.
"""

import re

_DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_FORBIDDEN = re.compile(f"[{_CONTROL}{_DIRECTION}\u2028\u2029\ud800-\udfff]")
_SHOWN_ESCAPED = re.compile(f"[\t\n{_FORBIDDEN.pattern[1:]}")


def forbidden_character(text: str) -> str | None:
    r"""The first character that a manifest may not hold, by its number; None where there is none.

    >>> forbidden_character("line\u202eoverride"), forbidden_character("naïve\t文\n")
    ('U+202E', None)
    """
    found = _FORBIDDEN.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def printable(text: str) -> str:
    r"""The text on one line, with a backslash and a number for each character that may not be shown as it is.

    >>> printable("a\x1b[2J\n\u202eb")
    'a\\x1b[2J\\x0a\\u202eb'
    """
    return _SHOWN_ESCAPED.sub(lambda found: _escaped(ord(found[0])), text)


def _escaped(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
