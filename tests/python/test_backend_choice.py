"""Which backend is chosen when numpack is imported."""

import os
import platform
import subprocess
import sys

import pytest

from numpack import _backend

VARIABLES = ("NUMPACK_BACKEND", "NUMPACK_FORCE_PYTHON_BACKEND", "NUMPACK_DISABLE_RUST")


@pytest.mark.parametrize(
    ("environ", "backend"),
    [
        ({}, None),
        ({"NUMPACK_BACKEND": ""}, None),
        ({"NUMPACK_BACKEND": "rust"}, "rust"),
        ({"NUMPACK_BACKEND": "Python"}, "python"),
        *(({"NUMPACK_FORCE_PYTHON_BACKEND": yes}, "python") for yes in ("1", "true", "YES", "True")),
        *(({"NUMPACK_FORCE_PYTHON_BACKEND": no}, None) for no in ("0", "false", "", "no")),
        ({"NUMPACK_DISABLE_RUST": "1"}, "python"),
        ({"NUMPACK_BACKEND": "rust", "NUMPACK_FORCE_PYTHON_BACKEND": "1"}, "rust"),
    ],
    ids=str,
)
def test_environment_is_asked(environ, backend):
    assert _backend.wanted(environ) == backend


def test_unknown_backend_is_refused():
    with pytest.raises(ImportError, match="NUMPACK_BACKEND is 'fortran'; set it to 'rust' or 'python'"):
        _backend.wanted({"NUMPACK_BACKEND": "fortran"})


@pytest.fixture
def missing(monkeypatch):
    """A function that makes cores missing."""

    def missing(*backends):
        names = {backend: f"numpack._missing_{backend}" for backend in backends}
        monkeypatch.setattr(_backend, "CORES", _backend.CORES | names)

    return missing


def test_forced_backend_that_is_missing_is_an_error_that_says_what_to_do(missing):
    missing("rust", "python")
    with pytest.raises(ImportError, match=r"the rust backend .*_missing_rust.*; install .*unset NUMPACK_BACKEND"):
        _backend.choose({"NUMPACK_BACKEND": "rust"})
    with pytest.raises(ImportError, match=r"the python backend .*_missing_python.* NUMPACK_DISABLE_RUST"):
        _backend.choose({"NUMPACK_DISABLE_RUST": "1"})
    with pytest.raises(ImportError, match="no backend to run on: .*_missing_rust.*_missing_python"):
        _backend.choose({})


def test_python_is_chosen_where_the_extension_is_missing(missing):
    pytest.importorskip("numpack._pure")
    missing("rust")
    core, backend = _backend.choose({})
    assert backend == "python" and core.NumPack and core.LazyArray


def in_new_process(code, **environ):
    """Runs code with only these of the variables that choose."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=kept | environ, capture_output=True, text=True)
    return done.stdout + done.stderr, done.returncode


def test_package_runs_on_what_is_asked_for(numpack):
    backend = numpack.get_backend_info()["backend_type"]
    code = "import numpack; print(numpack.get_backend_info()['backend_type'], numpack.NumPack('x').backend_type)"
    assert in_new_process(code, NUMPACK_BACKEND=backend) == (f"{backend} {backend}\n", 0)
    said, status = in_new_process(code, NUMPACK_BACKEND="c++")
    assert status == 1 and "ImportError: NUMPACK_BACKEND is 'c++'" in said


def test_importing_says_and_changes_nothing(tmp_path):
    code = """
        import os, sys, numpy
        before = numpy.issubdtype, len(os.listdir("/proc/self/fd")), dict(os.environ)
        import numpack
        assert before == (numpy.issubdtype, len(os.listdir("/proc/self/fd")), dict(os.environ))
        assert os.listdir() == []
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    command = [sys.executable, "-W", "error", "-c", lines]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_backend_info(numpack, npk):
    info = numpack.get_backend_info()
    assert info == {
        "backend_type": npk.backend_type,
        "platform": platform.system(),
        "is_windows": False,
        "version": numpack.__version__,
    }


def test_everything_public_is_there(numpack):
    for name in numpack.__all__:
        assert getattr(numpack, name) is not None
    assert numpack.force_cleanup_windows_handles() is True
