"""The build backend of this package: maturin, and the `npkfs` command beside the extension module.

maturin packs one Cargo target into a wheel. The mount command is a second one; it is built here and put into the
folder from which maturin fills the wheel's ``scripts``, so that ``pip install`` places it in ``bin/``.
"""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import maturin
from maturin import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# maturin takes the folder of this name, the extension module's, into the wheel when it is there.
DATA = Path("numpack._native.data")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    with npkfs_in_data():
        return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    with npkfs_in_data():
        return maturin.build_editable(wheel_directory, config_settings, metadata_directory)


@contextlib.contextmanager
def npkfs_in_data():
    """Provide `npkfs` in the data folder while the wheel is built. Linux only: elsewhere there is no mount."""
    if sys.platform != "linux":
        yield
        return
    scripts = DATA / "scripts"
    scripts.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy2(build_npkfs(), scripts / "npkfs")
        yield
    finally:
        shutil.rmtree(DATA)


def build_npkfs():
    """Build the command and return its path."""
    command = ["cargo", "build", "--release", "--locked", "--features", "fuse", "--bin", "npkfs"]
    command.append("--message-format=json-render-diagnostics")
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    for message in map(json.loads, output.splitlines()):
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == "npkfs" and message["executable"]:
            return message["executable"]
    raise RuntimeError(f"{' '.join(command)} named no executable")
