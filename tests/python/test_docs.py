"""Documentation and types say what the code does."""

import doctest
import inspect
import subprocess
import sys

import numpy as np
import pytest


def test_examples_in_docstrings_run(numpack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    n_examples = 0
    for documented in (numpack, numpack.NumPack, numpack.LazyArray):
        globs = {"np": np, "NumPack": numpack.NumPack}
        test = doctest.DocTestParser().get_doctest(documented.__doc__, globs, documented.__name__, None, 0)
        n_examples += len(test.examples)
        assert runner.run(test).failed == 0
    assert n_examples > 2


@pytest.mark.parametrize("name", ["NumPack", "LazyArray"])
def test_public_methods_are_documented(numpack, name):
    for attribute, value in vars(getattr(numpack, name)).items():
        if not attribute.startswith("_") and callable(value):
            assert inspect.getdoc(value), attribute
            assert inspect.signature(value), attribute


def test_stubs_agree_with_the_extension():
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy.stubtest", "numpack"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
