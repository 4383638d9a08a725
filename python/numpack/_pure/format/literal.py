"""Python literals, as far as ``.npy`` headers use them: strings, integers, booleans, tuples, lists, dicts.

`ast.literal_eval` reads more, and not what Python 2 wrote.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from numpack._pure.format.error import FormatError

# Deepest nesting of tuples, lists and dicts that is read.
MAX_DEPTH = 64

SPACE = re.compile(r"[ \t\n\r\f]*")
INTEGER = re.compile(r"([0-9]+)L?")
STRING = re.compile(r"u?(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\")", re.DOTALL)
ESCAPE = re.compile(r"\\(?:x(.{2})|u(.{4})|U(.{8})|(.))", re.DOTALL)
PLAIN_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}
HEX = re.compile(r"\+?[0-9a-fA-F]+")


@dataclass
class Dict:
    """The entries of a dict: nothing here needs to find one by its key."""

    entries: list[tuple[Any, Any]]


def parse(text: str) -> Any:
    """The literal that fills all of ``text``, but for white space around it.

    Raises
    ------
    FormatError
    """
    parser = _Parser(text)
    found = parser.literal(0)
    parser.skip_space()
    if parser.pos < len(text):
        raise parser.unexpected("the end")
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0

    def unexpected(self, expected: str) -> FormatError:
        return FormatError(f"npy header: expected {expected} at {self.text[self.pos : self.pos + 20]!r}")

    def skip_space(self) -> None:
        self.take(SPACE)

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.pos)
        if found is not None:
            self.pos = found.end()
        return found

    def eat(self, token: str) -> bool:
        self.skip_space()
        if not self.text.startswith(token, self.pos):
            return False
        self.pos += len(token)
        return True

    def literal(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise FormatError(f"npy header: nested deeper than {MAX_DEPTH}")
        if self.eat("("):
            items, ends_with_comma = self.items(")", depth + 1)
            # `(x)` is x itself; `(x,)` is a tuple.
            return items[0] if len(items) == 1 and not ends_with_comma else tuple(items)
        if self.eat("["):
            return self.items("]", depth + 1)[0]
        if self.eat("{"):
            return self.dict(depth + 1)
        if self.eat("True"):
            return True
        if self.eat("False"):
            return False
        if found := self.take(INTEGER):
            digits = found[1].lstrip("0")
            if len(digits) > 20 or int(digits or "0") >= 2**64:
                raise self.unexpected("an integer below 2**64")
            return int(digits or "0")
        if found := self.take(STRING):
            return ESCAPE.sub(self.unescaped, found[1] if found[1] is not None else found[2])
        raise self.unexpected("a Python literal")

    def items(self, end: str, depth: int) -> tuple[list[Any], bool]:
        """The items up to `end`, and whether a comma stood after the last one."""
        items: list[Any] = []
        comma = False
        while not self.eat(end):
            if items and not comma:
                raise self.unexpected("a comma")
            items.append(self.literal(depth))
            comma = self.eat(",")
        return items, comma

    def dict(self, depth: int) -> Dict:
        entries: list[tuple[Any, Any]] = []
        comma = True
        while not self.eat("}"):
            if not comma:
                raise self.unexpected("a comma")
            key = self.literal(depth)
            if not self.eat(":"):
                raise self.unexpected("a colon")
            entries.append((key, self.literal(depth)))
            comma = self.eat(",")
        return Dict(entries)

    def unescaped(self, escape: re.Match[str]) -> str:
        code = escape[1] or escape[2] or escape[3]
        if code is None:
            if escape[4] not in PLAIN_ESCAPES:
                raise self.unexpected("a known escape in")
            return PLAIN_ESCAPES[escape[4]]
        number = int(code, 16) if HEX.fullmatch(code) else 2**32
        if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
            raise self.unexpected("a valid character code in")
        return chr(number)
