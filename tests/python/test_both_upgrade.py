"""Both backends make the same store of one of NumPack 0.1-0.7."""

import importlib

import pytest
from both import BACKENDS, files
from test_upstream import FIXTURES, fixture

from numpack._backend import CORES

pytestmark = pytest.mark.skipif(not FIXTURES, reason="no stores of old releases here")


@pytest.mark.parametrize("store", ["0.7.0-rust/segmented_mutated", "0.2.0-python/dropped_rows", "0.1.1-rust/dtypes"])
@pytest.mark.parametrize("compress", [None, {"level": 1, "block": 4096}], ids=["uncompressed", "compressed"])
@pytest.mark.parametrize("in_place", [True, False])
def test_both_upgrade_to_the_same_files(tmp_path, store, compress, in_place):
    found = {}
    for backend in BACKENDS:
        path = fixture(store, tmp_path / backend)
        target = path if in_place else tmp_path / backend / "new.npk"
        assert importlib.import_module(CORES[backend])._upgrade(path, None if in_place else target, compress)
        found[backend] = files(target)
    assert found["rust"].keys() == found["python"].keys()
    for name, content in found["rust"].items():
        assert found["python"][name] == content, name
