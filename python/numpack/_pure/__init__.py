"""The backend in Python: the same stores as the extension module's, read and written with NumPy.

It has the same face as ``numpack._native``, and is meant to be read: the files have the names and the jobs of those in
``src``, and say in Python what ``spec/npk-format.md`` says in words.
"""

from importlib.metadata import PackageNotFoundError, version

from numpack._pure.lazy import LazyArray
from numpack._pure.numpack import NumPack
from numpack._pure.upgrade import _upgrade

try:
    __version__ = version("numpack")
except PackageNotFoundError:
    # Run from a source tree.
    __version__ = "0"

LazyArray.__module__ = NumPack.__module__ = "numpack"

__all__ = ["LazyArray", "NumPack", "__version__", "_upgrade"]
