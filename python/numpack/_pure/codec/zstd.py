"""One zstd frame per block. Only what blocks need: the content fits one call, its length stands in the frame's header,
there is no dictionary and no checksum (the block's pointer has one).

With the version of zstd that the Rust backend has, frames are the same byte for byte.
"""

import sys
from typing import Any

from .error import CodecError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = (0xFD2F_B528).to_bytes(4, "little")
"""The first bytes of a frame. zstd skips frames of other kinds silently."""

# Limits of zstd for the content of its own blocks, of which a frame is made.
_MIN_PART_LEN = 1 << 10
_MAX_PART_LEN = 1 << 17

# Parameters of zstd by their numbers in zstd.h, since the module has no name for all of them.
_COMPRESSION_LEVEL = 100
_MIN_MATCH = 105
_MAX_BLOCK_SIZE = 1015

# At its fastest true level zstd takes any 6 bytes that it has seen for a match. In planes of few different bytes that
# is mostly chance, costs more than it saves and is slow to decode: only longer ones are worth it there.
_LEVEL_OF_LONG_MATCHES = 1
_LONG_MATCH = 7


class Compressor:
    """Makes frames with one level of zstd, of content that is filtered or not."""

    def __init__(self, level: int, is_filtered: bool) -> None:
        self._options = {_COMPRESSION_LEVEL: level}
        if is_filtered and level == _LEVEL_OF_LONG_MATCHES:
            self._options[_MIN_MATCH] = _LONG_MATCH
        self._part_len = 0
        self._context: Any = None

    def compress(self, content: Any, run_len: int, max_len: int) -> bytes | None:
        """The frame of `content`, which is made of runs of `run_len` bytes with statistics of their own.

        None if it has more than `max_len` bytes. Each run gets blocks of zstd, and so entropy tables, of its own: a run
        that looks random is stored as it is and costs nothing to decode, and the next one is coded as if it stood
        alone. Raises `CodecError` if zstd has no memory.
        """
        n_parts = max(1, -(-run_len // _MAX_PART_LEN))
        part_len = max(_MIN_PART_LEN, -(-run_len // n_parts))
        try:
            if part_len != self._part_len:
                self._context = zstd.ZstdCompressor(options=self._options | {_MAX_BLOCK_SIZE: part_len})
                self._part_len = part_len
            frame: bytes = self._context.compress(content, zstd.ZstdCompressor.FLUSH_FRAME)
        except (zstd.ZstdError, MemoryError) as error:
            # The frame that was begun is in the way of the next one.
            self._context, self._part_len = None, 0
            raise CodecError(f"zstd does not encode the block: {_reason(error)}") from None
        return frame if len(frame) <= max_len else None


def decompress(stored: Any, raw_len: int) -> bytes:
    """The content, of `raw_len` bytes, of the one frame that is `stored`.

    The length that the frame claims is compared before anything is decoded. Raises `CodecError`.
    """
    content_len = None
    if bytes(stored[:4]) == MAGIC:
        try:
            content_len = zstd.get_frame_info(stored).decompressed_size
        except zstd.ZstdError:
            pass
    if content_len is None:
        raise CodecError("block does not begin with a zstd frame that tells its length")
    if content_len != raw_len:
        raise CodecError(f"zstd frame claims {content_len} bytes, expected {raw_len}")
    try:
        frame_len = zstd.get_frame_size(stored)
        if frame_len != len(stored):
            raise CodecError(f"zstd frame ends at byte {frame_len} of {len(stored)}; nothing may follow it")
        context = zstd.ZstdDecompressor()
        raw: bytes = context.decompress(stored, raw_len)
        if not context.eof and not context.needs_input:
            # The end of the frame may say nothing more, but has to be looked at.
            raw += context.decompress(b"", 1)
    except (zstd.ZstdError, MemoryError) as error:
        raise CodecError(f"zstd does not decode the block: {_reason(error)}") from None
    if len(raw) != raw_len:
        raise CodecError(f"zstd frame claims {len(raw)} bytes, expected {raw_len}")
    if not context.eof:
        raise CodecError("zstd does not decode the block: Data corruption detected")
    return raw


def _reason(error: Exception) -> str:
    """zstd's own words: the module puts what it did before them."""
    return str(error).rpartition(": ")[2] or type(error).__name__
