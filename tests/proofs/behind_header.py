"""Lets programs see the elements of an array as a file of their own: builds behind_header.c, which says how."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ways import NotRun

# Of every array that is made by the API.
HEADER_LEN = 4096


def build(scratch):
    global library
    source = Path(__file__).with_suffix(".c")
    library = scratch.path / "behind_header.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode != 0:
        raise NotRun(f"cc cannot build {source.name}: {built.stderr.strip()}")
    library.chmod(0o755)


def environment(file):
    """The variables with which a program sees ``file`` without its header."""
    return {
        "LD_PRELOAD": str(library),
        "BEHIND_HEADER_FILE": str(file),
        "BEHIND_HEADER_LEN": str(HEADER_LEN),
    }
