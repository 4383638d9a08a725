"""Reading the blocks of compressed arrays."""

from __future__ import annotations

from typing import NoReturn


class BlockElements:
    """The elements of a compressed array."""

    def __init__(self, store, record, data) -> None:
        raise_unsupported()


def raise_unsupported() -> NoReturn:
    """Say what is missing."""
    raise NotImplementedError("this backend does not read compressed arrays")
