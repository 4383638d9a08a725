"""Which core numpack runs on: the extension module `_native`, or `_pure`, which is Python.

Both read and write the same bytes and behave the same. The choice is made once, when numpack is imported.
"""

import importlib
import os
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

CORES = {"rust": "numpack._native", "python": "numpack._pure"}
REMEDIES = {
    "rust": 'install a wheel that has it, build it with "pip install .", or unset NUMPACK_BACKEND',
    "python": 'install what it needs with "pip install numpack[python]", or unset what asks for it: NUMPACK_BACKEND, '
    "NUMPACK_FORCE_PYTHON_BACKEND, NUMPACK_DISABLE_RUST",
}
# What older releases understood by yes.
YES = {"1", "true", "yes"}


def wanted(environ: Mapping[str, str]) -> str | None:
    """The backend that the environment asks for; None if it leaves the choice.

    Raises
    ------
    ImportError
        If ``NUMPACK_BACKEND`` is neither 'rust' nor 'python'.
    """
    backend = environ.get("NUMPACK_BACKEND", "").strip().lower()
    if backend in CORES:
        return backend
    if backend:
        raise ImportError(f"NUMPACK_BACKEND is {backend!r}; set it to 'rust' or 'python', or unset it")
    for variable in ("NUMPACK_FORCE_PYTHON_BACKEND", "NUMPACK_DISABLE_RUST"):
        if environ.get(variable, "").strip().lower() in YES:
            return "python"
    return None


def choose(environ: Mapping[str, str]) -> tuple[ModuleType, str]:
    """Import the core that the environment asks for; without a wish the native one, or the other if that is missing.

    Raises
    ------
    ImportError
        If the core that was asked for, or each of them, cannot be imported.
    """
    backend = wanted(environ)
    if backend is not None:
        return load(backend), backend
    try:
        return load("rust"), "rust"
    except ImportError as no_native:
        try:
            return load("python"), "python"
        except ImportError as no_pure:
            raise ImportError(f"numpack has no backend to run on: {no_native}; {no_pure}") from no_native


def load(backend: str) -> ModuleType:
    """Import one core."""
    try:
        return importlib.import_module(CORES[backend])
    except ImportError as error:
        raise ImportError(
            f"the {backend} backend of numpack cannot be imported ({error}); {REMEDIES[backend]}",
            name=error.name,
            path=error.path,
        ) from error


if TYPE_CHECKING:
    # The types of one stand for both.
    from numpack import _native

    core = _native
    backend_type: str
else:
    core, backend_type = choose(os.environ)
