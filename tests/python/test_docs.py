"""Documentation and types say what the code does."""

import doctest
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKEND

from numpack import writable_array


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def api_page():
    """The module that makes spec/api.md."""
    spec = importlib.util.spec_from_file_location("api_page", ROOT / "python" / "api_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented(numpack, api_page):
    """Everything public: (name, object)."""
    yield "numpack", numpack
    for name in (name for name in numpack.__all__ if not name.startswith("__")):
        value = getattr(numpack, name)
        yield name, value
        if isinstance(value, type) and not issubclass(value, BaseException):
            yield from ((f"{name}.{attribute}", member) for attribute, member in api_page.members(value))
    yield from vars(writable_array).items()


def test_examples_in_docstrings_run(numpack, api_page, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    n_examples = 0
    for name, value in documented(numpack, api_page):
        doc = getattr(value, "__doc__", None)
        if doc is None or name.startswith("_"):
            continue
        with numpack.NumPack(path, drop_if_exists=True) as npk:
            globs = {"np": np, "NumPack": numpack.NumPack, "WritableArray": writable_array.WritableArray, "npk": npk}
            test = doctest.DocTestParser().get_doctest(inspect.cleandoc(doc), globs, name, None, 0)
            n_examples += len(test.examples)
            assert runner.run(test).failed == 0
    assert n_examples > 10


def test_everything_public_is_documented(numpack, api_page):
    names = []
    for name, value in documented(numpack, api_page):
        if not name.startswith("_"):
            names.append(name)
            assert inspect.getdoc(value), name
            if callable(value) and not (isinstance(value, type) and issubclass(value, BaseException)):
                assert inspect.signature(value) is not None, name
    for name in ("NumPack.load", "NumPack.batch_mode", "NumPack.__getitem__", "LazyArray.shape", "Group.save", "pack"):
        assert name in names


def test_api_page_says_what_the_docstrings_say(numpack, api_page):
    kept = (ROOT / "spec" / "api.md").read_text()
    made = api_page.page(numpack, writable_array)
    if numpack.get_backend_info()["backend_type"] == "rust":
        assert made == kept, "run: python python/api_page.py > spec/api.md"
    else:
        # The page is made with the other backend; both have the same.
        headings = [[line for line in page.splitlines() if line.startswith("#")] for page in (made, kept)]
        assert headings[0] == headings[1]


def test_stubs_agree_with_the_extension(needs_native):
    if BACKEND != "rust":
        pytest.skip("type stubs are the same for both backends, and are checked in the run with NUMPACK_BACKEND=rust")
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy.stubtest", "--mypy-config-file", str(ROOT / "pyproject.toml"), "numpack"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
