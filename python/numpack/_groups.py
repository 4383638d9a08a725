"""`Group`: the arrays of a store whose names begin alike, as a store of their own."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

from numpack._attrs import Attributes
from numpack._rows import AnyArray, RowIndex, check_dict, check_name, names_of
from numpack._table import html_table, listing

if TYPE_CHECKING:
    from numpack._batch import BatchModeContext
    from numpack._native import LazyArray
    from numpack._store import NumPack
    from numpack._writable import WritableBatchMode


class Group:
    """The arrays of a store whose names begin with ``group/``, with the calls of the store under their short names.

    ``npk["run"]`` and `NumPack.group` make it: ``npk["run"]["ids"]`` is ``npk["run/ids"]``. A group is nothing that is
    stored: it is there as long as there are arrays in it, and groups in groups are further parts of the names. All
    calls take and return names without the group's; what they do, return and raise is as of the store. Iterating
    gives the names of all arrays in it, those in deeper groups too (``"first/ids"``).

    Attributes
    ----------
    name : str
        The group's whole name, without a slash at its end.
    store : NumPack

    Examples
    --------
    >>> with NumPack("runs.npk") as npk:
    ...     npk.save({"run/ids": np.arange(3), "run/a/x": np.ones(2), "all": np.zeros(1)})
    ...     run = npk["run"]
    ...     print(list(run), run.groups(), run["ids"])
    ...     run.append({"ids": np.array([3])})
    ...     npk.get_shape("run/ids")
    ['ids', 'a/x'] ['a'] [0 1 2]
    (4,)
    """

    def __init__(self, store: "NumPack", name: str) -> None:
        name = check_name(name).removesuffix("/")
        if not name:
            raise ValueError("a group has a name; the arrays outside of groups are those of the store")
        self.store = store
        self.name = name
        self._prefix = f"{name}/"

    def _full(self, name: object) -> str:
        if not isinstance(name, str):
            raise TypeError(f"array names are str, not {type(name)}")
        return self._prefix + name

    def _all_full(self, arrays: object) -> dict[str, Any]:
        return {self._prefix + name: value for name, value in check_dict(arrays).items()}

    def _short(self, names: Iterable[str]) -> list[str]:
        return [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]

    def save(self, arrays: dict[str, Any], compress: Any = None) -> None:
        """Save arrays into the group; see `NumPack.save`."""
        self.store.save(self._all_full(arrays), compress)

    @overload
    def load(
        self, name: str, lazy: Literal[False] = ..., *, rows: RowIndex | None = ..., out: AnyArray | None = ...
    ) -> AnyArray: ...
    @overload
    def load(self, name: str, lazy: Literal[True]) -> "LazyArray": ...
    @overload
    def load(
        self, name: str, lazy: bool = ..., *, rows: RowIndex | None = ..., out: AnyArray | None = ...
    ) -> "AnyArray | LazyArray": ...
    def load(
        self, name: str, lazy: bool = False, *, rows: RowIndex | None = None, out: AnyArray | None = None
    ) -> "AnyArray | LazyArray":
        """Load an array of the group; see `NumPack.load`."""
        return self.store.load(self._full(name), lazy, rows=rows, out=out)

    def append(self, arrays: dict[str, Any]) -> None:
        """Append rows to arrays of the group; see `NumPack.append`."""
        self.store.append(self._all_full(arrays))

    def replace(self, arrays: dict[str, Any], indexes: RowIndex) -> None:
        """Overwrite rows of arrays of the group; see `NumPack.replace`."""
        self.store.replace(self._all_full(arrays), indexes)

    def drop(self, name: str | list[str] | tuple[str, ...], indexes: RowIndex | None = None) -> None:
        """Drop arrays of the group, or rows of them; see `NumPack.drop`."""
        self.store.drop([self._prefix + each for each in names_of(name)], indexes)

    def getitem(self, name: str, indexes: RowIndex, *, out: AnyArray | None = None) -> AnyArray:
        """Read rows of an array of the group; see `NumPack.getitem`."""
        return self.store.getitem(self._full(name), indexes, out=out)

    def stream_load(self, name: str, buffer_size: int | None = None) -> Iterator[AnyArray]:
        """Read an array of the group some rows at a time; see `NumPack.stream_load`."""
        return self.store.stream_load(self._full(name), buffer_size)

    @overload
    def get_shape(self, name: None = None) -> dict[str, tuple[int, ...]]: ...
    @overload
    def get_shape(self, name: str) -> tuple[int, ...]: ...
    def get_shape(self, name: str | None = None) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """The shape of an array of the group, or of all; see `NumPack.get_shape`."""
        if name is not None:
            return self.store.get_shape(self._full(name))
        shapes = self.store.get_shape()
        return {name: shapes[self._prefix + name] for name in self._short(shapes)}

    def get_member_list(self) -> list[str]:
        """The names of the group's arrays, in the order of their first save."""
        return self._short(self.store.get_member_list())

    def get_metadata(self) -> dict[str, Any]:
        """What is in the group, as `NumPack.get_metadata` tells it of a store."""
        metadata = self.store.get_metadata()
        arrays = metadata["arrays"]
        arrays = {name: arrays[self._prefix + name] for name in self._short(arrays)}
        return metadata | {"arrays": arrays, "total_arrays": len(arrays)}

    def has_array(self, name: object) -> bool:
        """Whether the group has an array of this name."""
        return isinstance(name, str) and self.store.has_array(self._prefix + name)

    def get_modify_time(self, name: str) -> int | None:
        """When an array of the group was last changed; see `NumPack.get_modify_time`."""
        return self.store.get_modify_time(self._full(name))

    def reset(self) -> None:
        """Remove all arrays of the group, in one commit. Those of the rest of the store stay."""
        self.store.drop([self._prefix + name for name in self])

    def update(self, name: str) -> None:
        """Give back the space of dropped rows of an array of the group; see `NumPack.update`."""
        self.store.update(self._full(name))

    def recompress(self, name: str, codec: Any = True) -> bool:
        """Compress an array of the group differently; see `NumPack.recompress`."""
        return self.store.recompress(self._full(name), codec)

    def clone(self, source: str, target: str) -> None:
        """Copy an array of the group within it; see `NumPack.clone`."""
        self.store.clone(self._full(source), self._full(target))

    def create(self, name: str, shape: Any, dtype: Any = None, *, compress: Any = None) -> None:
        """Make a new array of zeros in the group; see `NumPack.create`."""
        self.store.create(self._full(name), shape, dtype, compress=compress)

    def write_rows(self, name: str, start: int, rows: Any) -> None:
        """Write rows of an array of the group in place; see `NumPack.write_rows`."""
        self.store.write_rows(self._full(name), start, rows)

    def attrs_of(self, name: str) -> Attributes:
        """The attributes of an array of the group; see `NumPack.attrs_of`."""
        return self.store.attrs_of(self._full(name))

    def group(self, name: str) -> "Group":
        """The group of this name in this one, if there are arrays in it or not."""
        return Group(self.store, self._full(name))

    def groups(self) -> list[str]:
        """The names of the groups that are directly in this one."""
        return first_parts(self.get_member_list())

    def batch_mode(self, memory_limit: int | None = None) -> "BatchModeContext":
        """A block whose changes, to the group and to the store, are committed together; see `NumPack.batch_mode`."""
        return self.store.batch_mode(memory_limit)

    def writable_batch_mode(self) -> "WritableBatchMode":
        """A block with arrays of the group mapped for writing; see `NumPack.writable_batch_mode`."""
        return self.store.writable_batch_mode()._under(self._prefix)

    def flush(self) -> None:
        """Return when everything that was committed to the store is on the disk; see `NumPack.flush`."""
        self.store.flush()

    def keys(self) -> list[str]:
        """The names of the group's arrays: `get_member_list`."""
        return self.get_member_list()

    def __getitem__(self, name: str, /) -> Any:
        """The array of this name, loaded; if there is none, the group of this name."""
        return self.store[self._full(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.get_member_list())

    def __contains__(self, name: object, /) -> bool:
        return self.has_array(name)

    def __len__(self) -> int:
        return len(self.get_member_list())

    def __bool__(self) -> bool:
        """A group is true even if it is empty."""
        return True

    def __eq__(self, other: object, /) -> bool:
        if not isinstance(other, Group):
            return NotImplemented
        return self.store is other.store and self.name == other.name

    def __hash__(self) -> int:
        return hash((id(self.store), self.name))

    def __repr__(self) -> str:
        if self.store.is_closed:
            return f"Group({self.name!r}, status=closed)"
        return f"Group({self.name!r}, arrays={len(self)}, store={self.store.path})"

    def _repr_html_(self) -> str:
        if self.store.is_closed:
            return html_table(repr(self), [])
        return html_table(repr(self), listing(self.get_metadata()))


def first_parts(names: Iterable[str]) -> list[str]:
    """The first parts of those names that have several, each once."""
    return list(dict.fromkeys(name.split("/", 1)[0] for name in names if "/" in name))
