"""`NumPack`, the public class: a core's store, and what is built on it for both cores alike.

The methods of the core that read and write are the public ones, without a wrapper around them.
"""

import os
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from numpack._attrs import Attributes
from numpack._backend import core
from numpack._batch import BatchModeContext, Overlay
from numpack._errors import ArrayNotFoundError
from numpack._groups import Group, first_parts
from numpack._table import html_table, listing
from numpack._writable import WritableBatchMode

if TYPE_CHECKING:
    from numpack._native import NumPack as _Core
else:
    _Core = object


class StoreMethods(_Core):
    """What a store has besides what the core has."""

    # What the block of `batch_mode` that the store is in has changed; None outside of one.
    _overlay: Overlay | None = None
    # The class that this was derived from, if anybody did; and this class within such a block.
    _public: "ClassVar[type[NumPack]]"
    _inside: "ClassVar[type[NumPack]]"

    def __getitem__(self, name: str, /) -> Any:
        """The array of this name, loaded; if there is none but arrays of names that begin with ``name/``, that group.

        Raises
        ------
        ArrayNotFoundError
            If there is neither.
        """
        try:
            return self.load(name)
        except ArrayNotFoundError:
            prefix = f"{name.removesuffix('/')}/"
            if len(prefix) > 1 and any(other.startswith(prefix) for other in self.get_member_list()):
                return Group(cast("NumPack", self), name)
            raise

    def batch_mode(self, memory_limit: int | None = None) -> BatchModeContext:
        """Work on copies in memory, and commit all changes at once at the end of the block.

        Within ``with npk.batch_mode():`` all calls of the store go to these copies, and see what the block changed:

        - `load` reads an array once and gives the same ndarray each time, whatever `lazy` says. What is changed in it
          in place is saved, with `save` or without; an array that was not changed is not written.
        - `save` keeps the array that it is given, without a copy: what is changed in it afterwards is saved as well.
        - `append`, `replace`, `drop`, `write_rows`, `create`, `clone`, `reset` and changes of attributes count in the
          order of the calls. Appending and dropping rows make a new array, which the next `load` gives: from then on,
          one that was loaded before is no part of the store.
        - `getitem`, `stream_load`, and `load` with `rows` or `out`, of arrays that the block did not load or change,
          read the store and keep nothing.

        At the end, all that changed is written in one commit, codecs and attributes included: other readers see all
        of it or nothing, and so does who opens the store after a crash. Each array that changed is written whole, and
        what others wrote to it meanwhile is lost. **If the block raises, nothing of it is written.** An array whose
        codec nobody named keeps the one it has, unless the block dropped it first.

        A block within a block joins it: the outer one commits. It is the store that is in a block: the calls of other
        threads through the same object belong to it.

        Parameters
        ----------
        memory_limit : int, optional
            Bytes that copies may take in memory; None for no limit. Further copies are in files without a name, in
            the store's directory, and mapped: the kernel keeps as much of them in memory as fits. Arrays that were
            given to `save` do not count, they are their maker's.

        Returns
        -------
        BatchModeContext

        Raises
        ------
        StoreClosedError
            When the block is entered, unless the store is open; at its end, if it was closed meanwhile.
        TypeError, ValueError
            For limits that are no number of bytes.
        ReadOnlyError, OSError
            At the end of the block; nothing is written then.

        Examples
        --------
        >>> with NumPack("memo.npk") as npk:
        ...     npk.save({"a": np.arange(3.0)})
        ...     with npk.batch_mode():
        ...         for _ in range(3):
        ...             a = npk.load("a")
        ...             a *= 2
        ...             npk.save({"a": a})
        ...         npk.append({"a": np.array([1.0])})
        ...     npk.load("a")
        array([ 0.,  8., 16.,  1.])
        """
        return BatchModeContext(cast("NumPack", self), memory_limit)

    def writable_batch_mode(self) -> WritableBatchMode:
        """Map arrays for writing: what is changed in them is changed in the store, and takes next to no memory.

        Within ``with npk.writable_batch_mode() as wb:``, ``wb.load(name)`` gives the array, writable, and nothing needs
        to be saved. Like `replace`, this is visible to all readers at once and not atomic: what was written before
        the block raised, or the process died, stays written. Of a compressed array, which is decoded into a
        temporary file, the blocks that differ are committed at the end of the block, after an exception too.

        Shape and dtype cannot change, and there are no new arrays: use `batch_mode` for that. Who saves over an array,
        or drops it, leaves the mapped one with the old version. Dropped rows are compacted away when the array is
        mapped.

        Returns
        -------
        WritableBatchMode

        Raises
        ------
        StoreClosedError
            When the block is entered, unless the store is open.
        RuntimeError
            When it is entered within `batch_mode`.
        """
        return WritableBatchMode(cast("NumPack", self))

    @property
    def attrs(self) -> Attributes:
        """The store's own attributes, as a dict that is stored.

        Returns
        -------
        Attributes
        """
        return Attributes(cast("NumPack", self), None)

    def attrs_of(self, name: str) -> Attributes:
        """The attributes of an array, as a dict that is stored.

        Parameters
        ----------
        name : str

        Returns
        -------
        Attributes

        Raises
        ------
        ArrayNotFoundError
        """
        return Attributes(cast("NumPack", self), name)

    def group(self, name: str) -> Group:
        """The arrays whose names begin with ``name/``, as a store of their own, if there are any yet or not.

        Parameters
        ----------
        name : str
            ``"a/b"`` is the group ``b`` in the group ``a``.

        Returns
        -------
        Group

        Raises
        ------
        ValueError
            If the name is empty.
        """
        return Group(cast("NumPack", self), name)

    def groups(self) -> list[str]:
        """The names of the groups that are in no other group.

        Returns
        -------
        list of str
        """
        return first_parts(self.get_member_list())

    def get_io_stats(self) -> dict[str, Any]:
        """What is counted of input and output: nothing. The kernel's tools see the files of a store as any others.

        Returns
        -------
        dict
            ``backend_type`` ('rust' or 'python') and ``stats_available`` (False).
        """
        return {"backend_type": self.backend_type, "stats_available": False}

    def __repr__(self) -> str:
        if self.is_closed:
            return f"NumPack({self.path}, status=closed)"
        return f"NumPack({self.path}, arrays={len(self)}, backend={self.backend_type})"

    def _repr_html_(self) -> str:
        if self.is_closed:
            return html_table(repr(self), [])
        return html_table(repr(self), listing(self.get_metadata()))


def _made_already(
    self: object,
    filename: "str | os.PathLike[str]",
    drop_if_exists: bool = False,
    strict_context_mode: bool = False,
    warn_no_context: bool | None = None,
    force_gc_on_close: bool = False,
    *,
    durable: bool = False,
    codec: Any = None,
) -> None:
    pass


def public_class(of: ModuleType) -> "type[NumPack]":
    """The public class of stores over the core `of`."""
    namespace: dict[str, Any] = {"__doc__": of.NumPack.__doc__, "__module__": "numpack", "__qualname__": "NumPack"}
    if of.NumPack.__init__ is object.__init__:
        # It is made by its __new__ alone. Classes derived from it call super().__init__ with the arguments all the same.
        namespace["__init__"] = _made_already
    made = cast("type[NumPack]", type("NumPack", (StoreMethods, of.NumPack), namespace))
    made._public = made
    return made


if TYPE_CHECKING:

    class NumPack(StoreMethods, core.NumPack):
        """A store of named arrays."""

        def __init__(
            self,
            filename: "str | os.PathLike[str]",
            drop_if_exists: bool = False,
            strict_context_mode: bool = False,
            warn_no_context: bool | None = None,
            force_gc_on_close: bool = False,
            *,
            durable: bool = False,
            codec: Any = None,
        ) -> None: ...

else:
    NumPack = public_class(core)
