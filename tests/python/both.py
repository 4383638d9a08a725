"""Both backends in one process, and what the files of a store say without their identities and times.

Modules that import this one are skipped, and say why, but in the run with the Rust backend: once is enough.
"""

import importlib
import os
import struct
import subprocess
import sys
import zlib

import pytest
from conftest import BACKEND

from numpack import _store as store
from numpack._backend import CORES

BACKENDS = ("rust", "python")

if BACKEND != "rust":
    pytest.skip("both backends together are tested in the run with NUMPACK_BACKEND=rust", allow_module_level=True)
try:
    import msgpack

    # The public class with each backend, whichever the package chose.
    CLASSES = {backend: store.public_class(importlib.import_module(CORES[backend])) for backend in BACKENDS}
except ImportError as error:
    pytest.skip(f"a backend cannot be imported: {error}", allow_module_level=True)

HEADER_LEN = 64
FRAME_HEADER_LEN = 24
ID_OFFSET, PUBLISHED_OFFSET = 16, 40


def start(backend, code, *arguments):
    """Start Python code in another process, which uses that backend and tells on standard output how it goes."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code, *map(str, arguments)],
        env=os.environ | {"NUMPACK_BACKEND": backend},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Wait for a process that must not fail."""
    said, complaint = process.communicate()
    assert process.returncode == 0, complaint
    return said


def manifest(path):
    """What the manifest of a store says, without its identity and times: its frames, decoded."""
    data = (path / "metadata.npkm").read_bytes()
    assert zlib.crc32(data[:32]) == int.from_bytes(data[32:36], "little")
    frames = [data[:ID_OFFSET] + data[PUBLISHED_OFFSET:HEADER_LEN]]
    offset = HEADER_LEN
    while offset < len(data):
        mark, crc, length, _reserved, synced = struct.unpack_from("<4sIIIQ", data, offset)
        end = offset + FRAME_HEADER_LEN + length
        assert mark == b"npkF" and zlib.crc32(data[offset + 8 : end]) == crc, offset
        payload = msgpack.unpackb(data[end - length : end], strict_map_key=False)
        # Decoding loses in which of its forms a value was written: the length of the frame has that.
        frames.append((offset, length, synced, _without_times(payload)))
        offset = end + -end % 8
    assert offset == len(data)
    return frames


def _without_times(payload):
    timeless = {key: value for key, value in payload.items() if key != "time"}
    for edit in timeless.get("ops", []):
        if "put" in edit:
            edit["put"][1] = _record(edit["put"][1])
    timeless["arrays"] = [(name, _record(record)) for name, record in timeless.get("arrays", [])]
    return timeless


def _record(data):
    record = msgpack.unpackb(data)
    return [(key, value) for key, value in record.items() if key != "mtime"]


def files(path):
    """The bytes of all files of a store but the manifest, whose frames these are, and what is locked."""
    found = {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith("metadata.npkm")}
    return found | {"metadata.npkm": manifest(path)}
