"""What can be wrong with bytes. The layer above adds the file's name."""

from __future__ import annotations

from numpack._text import quoted

__all__ = ["BadDtype", "BadMagic", "Damaged", "FormatError", "Malformed", "Unsupported", "quoted"]


class FormatError(Exception):
    """Bytes that do not follow ``spec/npk-format.md``, or a name, dtype or shape that no array can have."""

    # Whether another release may be able to read them.
    is_unsupported = False


class BadMagic(FormatError):
    """The file does not begin like one of its kind."""


class Unsupported(FormatError):
    """The file needs a newer release."""

    is_unsupported = True


class BadDtype(FormatError):
    """A description that is not one of a dtype of NumPy's with a fixed size."""


class Malformed(Exception):
    """A payload that is not what the specification describes. Who knows where it is makes a `FormatError` of it."""


class Damaged(FormatError):
    """A checksum does not match."""
