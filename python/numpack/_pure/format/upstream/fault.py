"""What can be wrong with a store of NumPack 0.1 to 0.7. The layer above adds the names of the store and the file."""

from __future__ import annotations


class TableError(ValueError):
    """A table that does not follow ``spec/upstream-layouts.md``: the store cannot be opened."""


class Fault(ValueError):
    """What is wrong with one array, or with a file of it. The others can be read."""


def quoted(text: str) -> str:
    """The text in double quotes, with what is not printable escaped."""
    plain = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0"}
    shown = (plain.get(char) or (char if char.isprintable() else f"\\u{{{ord(char):x}}}") for char in text)
    return f'"{"".join(shown)}"'
