"""Fixtures for every test: the package, once per backend, and an open store in a temporary directory."""

import importlib

import pytest

BACKENDS = ["rust"]


@pytest.fixture(params=BACKENDS)
def numpack(request):
    """The package numpack with one of its backends."""
    package = importlib.import_module("numpack")
    assert package.get_backend_info()["backend_type"] == request.param
    return package


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
