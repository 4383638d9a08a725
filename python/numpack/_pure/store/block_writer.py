"""Writing the blocks of compressed arrays."""

from __future__ import annotations

from numpack._pure.store.blocks import raise_unsupported


def codec_for(compression, layout, sample):
    """The codec of a new array."""
    raise_unsupported()


class BlockStage:
    """The blocks of a new array, one after the other."""

    def __init__(self, file, codec, layout, header) -> None:
        raise_unsupported()


class BlockWriter:
    """Changes the blocks of an array."""

    def __init__(self, store, record, data) -> None:
        raise_unsupported()


def has_dead_bytes(record) -> bool:
    """Whether an array has blocks that are not needed any more."""
    return record.codec is not None and record.index.dead(record.offset) > 0


def punch(store, record, data) -> bool:
    """Give the space of dead blocks back to the file system."""
    return False
