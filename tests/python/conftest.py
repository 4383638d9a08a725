"""Fixtures for every test: the package, and an open store in a temporary directory.

A run tests one backend: ``NUMPACK_BACKEND=rust pytest tests/python``, or ``python``. Without the variable it is the one
that the package chooses. What needs both, or one in particular, says so where that is missing.
"""

import importlib.util
import os
import shutil
import sys
import types
from pathlib import Path

import hypothesis
import pytest
from counting import COUNTS

import numpack as package

BACKEND = package.get_backend_info()["backend_type"]

# How many examples random tests try. The Python backend takes several times as long for each.
N_EXAMPLES = int(os.environ.get("NUMPACK_TEST_CASES", {"rust": 60, "python": 15}[BACKEND]))
hypothesis.settings.register_profile("all", max_examples=N_EXAMPLES, deadline=None, print_blob=True)
hypothesis.settings.load_profile("all")

# Test modules in which every store is made uncompressed, compressed, and compressed in the smallest blocks.
COMPRESSED_AS_WELL = {
    "test_concurrency",
    "test_lazy",
    "test_lazy_operators",
    "test_model",
    "test_rows",
    "test_save_load",
    "test_upstream_defects",
}
COMPRESSIONS = {"uncompressed": None, "compressed": True, "small blocks": {"block": 4096, "level": 3}}


def pytest_terminal_summary(terminalreporter):
    for what, n in sorted(COUNTS.items()):
        terminalreporter.write_line(f"covered: {n} {what}")


def pytest_generate_tests(metafunc):
    if "compress" in metafunc.fixturenames and metafunc.module.__name__ in COMPRESSED_AS_WELL:
        metafunc.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS, scope="function")


@pytest.fixture
def compress():
    """How `save` compresses where a test does not say it."""
    return None


@pytest.fixture(params=[BACKEND])
def numpack(compress):
    """The package numpack with the backend of this run."""
    if compress is None:
        return package

    class NumPack(package.NumPack):
        def save(self, arrays, compress=compress):
            super().save(arrays, compress)

    return types.SimpleNamespace(**vars(package) | {"NumPack": NumPack})


@pytest.fixture(scope="session")
def needs_native():
    """Skips the test, and says why, where the native module is missing."""
    if importlib.util.find_spec("numpack._native") is None:
        pytest.skip("no native module: numpack was installed without its Rust backend")


def why_no_mount():
    """Why nothing can be mounted here, or None."""
    if shutil.which("npkfs", path=Path(sys.executable).parent) is None:
        return "no npkfs next to this Python"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "no fusermount3"
    return None


@pytest.fixture
def can_mount():
    """Skips the test, and says why, where nothing can be mounted."""
    if why := why_no_mount():
        pytest.skip(why)


@pytest.fixture
def path(tmp_path):
    """Where a store can be made."""
    return tmp_path / "data.npk"


@pytest.fixture
def npk(numpack, path):
    """An open, empty store."""
    with numpack.NumPack(path) as npk:
        yield npk


@pytest.fixture
def load_all(numpack):
    """A function that opens a store afresh and returns all its arrays."""

    def load_all(path):
        with numpack.NumPack(path) as npk:
            return {name: npk.load(name) for name in npk}

    return load_all
