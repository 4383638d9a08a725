"""Why a block could not be encoded or decoded. The layer above adds the array and the block."""


class CodecError(Exception):
    """A block that zstd refuses, or whose stored bytes contradict what the store knows of it."""
