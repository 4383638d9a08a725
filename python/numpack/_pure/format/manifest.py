"""The table of arrays: records, the edits that change them, and folding edits into the table.

The first frame of a manifest is a snapshot of the whole table, each later one an edit: one commit, whose operations apply
in order, all or none. Operations are what stands on disk: maps with one key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap64

from numpack._dtypes import Descr
from numpack._errors import CorruptStoreError, UnsupportedError
from numpack._pure.cached import cached_property
from numpack._pure.format import bitmap, messagepack, names
from numpack._pure.format import dtype as dtypes
from numpack._pure.format.block_index import FILE_HEADER_LEN, Index, IndexFault
from numpack._pure.format.codec import Codec, Compression
from numpack._pure.format.error import FormatError, Malformed, quoted
from numpack._pure.format.layout import MAX_NBYTES, Layout, layout_of
from numpack._pure.format.npy import MAX_HEADER_LEN
from numpack._pure.format.upstream import Source

Attrs = dict[str, Any]
Op = dict[str, Any]

# Generations and ids are below this: no count of them comes to its end.
MAX_COUNT = 2**63
# How many bytes of an unsigned integer follow its mark in MessagePack.
UINT_LENS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
NONE_DELETED = BitMap64()


@dataclass(frozen=True)
class Record:
    """What the store knows of one version of an array. No field contradicts another.

    ``layout`` is that of the stored elements, with the rows that are deleted; ``offset`` the length of the ``.npy``
    header; ``mtime`` the time of the last commit that changed the array, in nanoseconds since 1970.
    """

    name: str
    id: int
    file: str
    descr: Descr
    layout: Layout
    offset: int
    codec: Codec | None = None
    index: Index | None = None
    deleted: BitMap64 = NONE_DELETED
    mtime: int = 0
    attrs: Attrs = field(default_factory=dict)
    # Of an array of NumPack 0.1 to 0.7: its file has no header.
    upstream: Source | None = None

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the elements."""
        return dtypes.to_numpy(self.descr)

    @cached_property
    def n_rows(self) -> int:
        """Rows that are not deleted; 1 of a 0-d array."""
        return self.layout.n_rows - len(self.deleted)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape without the deleted rows."""
        return (self.n_rows, *self.layout.shape[1:]) if self.layout.shape else ()

    @property
    def nbytes(self) -> int:
        """Bytes of the elements without the deleted rows."""
        return self.n_rows * self.layout.row_len

    @property
    def header_offset(self) -> int:
        """Where the ``.npy`` header is in the data file."""
        return FILE_HEADER_LEN if self.codec else 0

    @property
    def elements_offset(self) -> int:
        """Where the elements begin in a data file without blocks."""
        return 0 if self.upstream else self.offset

    @property
    def data_end(self) -> int:
        """How long the data file is at least."""
        # What follows in one with blocks may be reserved, and not written yet.
        return self.header_offset + self.offset + (0 if self.codec else self.layout.nbytes)

    @cached_property
    def live(self) -> NDArray[np.intp] | None:
        """The stored rows that are not deleted; None if that is all of them."""
        if not self.deleted:
            return None
        is_live = np.ones(self.layout.n_rows, bool)
        is_live[np.array(self.deleted, np.uint64).astype(np.intp)] = False
        return np.flatnonzero(is_live)


@dataclass(frozen=True)
class Change:
    """What an edit did to one version of an array: 'added', 'removed', or something else."""

    id: int
    kind: str


class Stored:
    """An array as it stands in a manifest: its record is decoded when somebody asks for it, or it changes."""

    __slots__ = ("_offset", "_record", "blob", "id", "name")

    def __init__(self, name: str, blob: bytes, offset: int) -> None:
        """``offset`` is where the frame starts."""
        self.name, self.blob, self._offset = name, blob, offset
        self.id = _record_id(blob, offset)
        self._record: Record | None = None

    def decode(self) -> Record:
        """The record.

        Raises
        ------
        FormatError
        """
        if self._record is None:
            self._record = decode_record(self.name, self.blob, self._offset)
        return self._record


class Table:
    """All arrays of a store at one generation, in the order of their first save.

    Names and identities are checked when a manifest is read; a record that is wrong otherwise is an error of those who
    ask for that array. ``refuse`` makes the exception that they get of what is wrong.
    """

    def __init__(self, refuse: Callable[[FormatError], Exception] = lambda error: error) -> None:
        self._refuse = refuse
        self.generation = 0
        self.next_id = 1
        self.attrs: Attrs = {}
        self.compression: Compression | None = None
        # A new version takes the place of the old one, a renamed array keeps its own: places are numbers that grow.
        self._records: dict[int, Record | Stored] = {}
        self._places: dict[str, int] = {}
        self._places_by_id: dict[int, int] = {}
        self._next_place = 0

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def names(self) -> list[str]:
        """The names of all arrays, in the order of their first save."""
        # Places are only ever added at the end.
        return [entry.name for entry in list(self._records.values())]

    def get(self, name: str) -> Record | None:
        """The record of an array."""
        place = self._places.get(name)
        return None if place is None else self._decoded(self._records[place])

    def by_id(self, array_id: int) -> Record | None:
        """The record of a version of an array, whatever name it has by now."""
        place = self._places_by_id.get(array_id)
        return None if place is None else self._decoded(self._records[place])

    def records(self) -> list[Record]:
        """All records, in the order of their first save."""
        return [self._decoded(entry) for entry in list(self._records.values())]

    def _decoded(self, entry: Record | Stored) -> Record:
        if isinstance(entry, Record):
            return entry
        try:
            return entry.decode()
        except FormatError as error:
            raise self._refuse(error) from None

    @classmethod
    def decode(
        cls, payload: bytes, offset: int, refuse: Callable[[FormatError], Exception] = lambda error: error
    ) -> Table:
        """Read a snapshot's payload, without the records in it; ``offset`` is where its frame starts.

        Raises
        ------
        FormatError
        """
        try:
            snapshot = messagepack.fields(
                messagepack.unpack(payload), {"generation", "next_id", "arrays"}, frozenset({"attrs", "codec"})
            )
            table = cls(refuse)
            table.generation = messagepack.count(snapshot["generation"])
            table.next_id = messagepack.count(snapshot["next_id"])
            table.attrs = _attrs(snapshot.get("attrs", {}))
            table.compression = _compression(snapshot["codec"]) if "codec" in snapshot else None
            entries = [_entry(entry) for entry in messagepack.array(snapshot["arrays"])]
        except Malformed as error:
            raise _undecodable(error, offset) from None
        if table.generation >= MAX_COUNT or table.next_id >= MAX_COUNT:
            raise table._refused(table.generation, f"counts up to 2**63: the next id is {table.next_id}")
        for name, blob in entries:
            stored = Stored(name, blob, offset)
            if not 0 < stored.id < table.next_id:
                raise table._refused(table.generation, f"array {quoted(name)} has the id {stored.id} of another")
            if name in table._places:
                raise table._refused(table.generation, f"array {quoted(name)} is there twice")
            if stored.id in table._places_by_id:
                raise table._refused(table.generation, f"two arrays have the id {stored.id}")
            table._put(stored)
        return table

    def encode(self) -> bytes:
        """The payload of a snapshot of this table."""
        snapshot = {"generation": self.generation, "next_id": self.next_id, "attrs": _sorted(self.attrs)}
        if self.compression is not None:
            snapshot["codec"] = self.compression.to_map()
        snapshot["arrays"] = [
            [entry.name, entry.blob] if isinstance(entry, Stored) else encode_record(entry)
            for entry in self._records.values()
        ]
        return messagepack.pack(snapshot)

    def apply(self, edit: Edit, changed: Callable[[Change], None]) -> None:
        """Apply a commit.

        Raises
        ------
        FormatError
            If it does not fit this table, which is then of no use any more.
        """
        if edit.generation != self.generation + 1:
            raise self._refused(edit.generation, f"follows generation {self.generation}")
        for op in edit.ops:
            self._apply(op, edit, changed)
        self.generation = edit.generation

    def _apply(self, op: Op, edit: Edit, changed: Callable[[Change], None]) -> None:
        ((key, value),) = op.items()

        def refused(what: str) -> FormatError:
            return self._refused(edit.generation, what)

        if key == "put":
            record = value
            if record.id < self.next_id:
                raise refused(f"array {quoted(record.name)} has the id {record.id} of another")
            if record.id >= MAX_COUNT:
                raise refused(f"array {quoted(record.name)} has the id {record.id}")
            self.next_id = record.id + 1
            old = self._put(record)
            if old is not None:
                changed(Change(old.id, "removed"))
            changed(Change(record.id, "added"))
        elif key == "delete":
            place = self._places.pop(value, None)
            if place is None:
                raise refused(f"removes {quoted(value)}, which is not there")
            old = self._records.pop(place)
            del self._places_by_id[old.id]
            changed(Change(old.id, "removed"))
        elif key == "rename":
            source, target = value
            if target in self._places:
                raise refused(f"renames to {quoted(target)}, which is there")
            names.check(target)
            record = self._change(source, edit, name=target)
            self._places[target] = self._places.pop(source)
            changed(Change(record.id, "renamed"))
        elif key == "rows":
            name, n_rows = value
            record = self._existing(name, edit)
            layout = record.layout
            if not layout.shape or layout.shape[0] > n_rows or layout.fortran_order or record.codec:
                raise refused(f"gives {quoted(name)} {n_rows} rows")
            self._change(name, edit, layout=layout.with_rows(n_rows), mtime=edit.time)
            changed(Change(record.id, "resized"))
        elif key == "drop_rows":
            name, rows = value
            record = self._existing(name, edit)
            if what := check_deleted(rows, record.layout):
                raise refused(what)
            self._change(name, edit, deleted=record.deleted | rows, mtime=edit.time)
            changed(Change(record.id, "resized"))
        elif key == "written":
            record = self._change(value, edit, mtime=edit.time)
            changed(Change(record.id, "written"))
        elif key == "blocks":
            name, n_rows, index = value
            record = self._existing(name, edit)
            layout = record.layout
            if layout.shape and layout.shape[0] < n_rows and not layout.fortran_order:
                layout = layout.with_rows(n_rows)
            elif layout.n_rows != n_rows:
                raise refused(f"gives {quoted(name)} {n_rows} rows")
            if record.codec is None:
                raise refused(f"gives {quoted(name)} blocks, and it is not compressed")
            try:
                index.check(layout.nbytes, record.offset, record.codec)
            except IndexFault as error:
                raise refused(f"gives {quoted(name)} an index that {error}") from None
            is_longer = layout is not record.layout
            self._change(name, edit, layout=layout, index=index, mtime=edit.time)
            changed(Change(record.id, "resized" if is_longer else "written"))
        elif key == "codec":
            self.compression = value
        else:
            name, added, removed = value
            if name is None:
                self.attrs = _changed_attrs(self.attrs, added, removed)
            else:
                record = self._existing(name, edit)
                self._change(name, edit, attrs=_changed_attrs(record.attrs, added, removed))
                changed(Change(record.id, "attrs"))

    def _put(self, record: Record | Stored) -> Record | Stored | None:
        place = self._places.get(record.name)
        old = None
        if place is None:
            place = self._next_place
            self._next_place += 1
            self._places[record.name] = place
        else:
            old = self._records[place]
            del self._places_by_id[old.id]
        self._records[place] = record
        self._places_by_id[record.id] = place
        return old

    def _existing(self, name: str, edit: Edit) -> Record:
        record = self.get(name)
        if record is None:
            raise self._refused(edit.generation, f"changes {quoted(name)}, which is not there")
        return record

    def _change(self, name: str, edit: Edit, /, **changes: Any) -> Record:
        record = replace(self._existing(name, edit), **changes)
        self._records[self._places[name]] = record
        return record

    @staticmethod
    def _refused(generation: int, what: str) -> FormatError:
        return FormatError(f"edit of generation {generation}: {what}")


def _changed_attrs(attrs: Attrs, added: Attrs, removed: list[str]) -> Attrs:
    return _sorted({name: value for name, value in attrs.items() if name not in removed} | added)


def check_deleted(deleted: BitMap64, layout: Layout) -> str | None:
    """What is wrong with a set of deleted rows of an array; None if nothing is."""
    if not deleted:
        return None
    if layout.fortran_order or not layout.shape:
        return "rows are deleted of an array that cannot have deleted rows"
    if deleted.max() >= layout.n_rows:
        return f"row {deleted.max()} of {layout.n_rows} is deleted"
    return None


@dataclass(frozen=True)
class Edit:
    """One commit: the generation that it makes, its time in nanoseconds since 1970, and its operations."""

    generation: int
    time: int
    ops: list[Op]

    def encode(self) -> bytes:
        """The payload of the edit's frame."""
        ops = [_op_to_stored(op) for op in self.ops]
        return messagepack.pack({"generation": self.generation, "time": self.time, "ops": ops})

    @classmethod
    def decode(cls, payload: bytes, offset: int) -> Edit:
        """Read an edit's payload; ``offset`` is where its frame starts.

        Raises
        ------
        FormatError
        """
        try:
            stored = messagepack.fields(messagepack.unpack(payload), {"generation", "time", "ops"})
            ops = [_op_from_stored(op, offset) for op in messagepack.array(stored["ops"])]
            return cls(messagepack.count(stored["generation"]), messagepack.integer(stored["time"]), ops)
        except Malformed as error:
            raise _undecodable(error, offset) from None


def _undecodable(error: Malformed, offset: int) -> FormatError:
    return FormatError(f"frame at byte {offset} does not decode: {error}")


def _op_to_stored(op: Op) -> Op:
    ((key, value),) = op.items()
    if key == "put":
        value = encode_record(value)
    elif key == "drop_rows":
        value = [value[0], value[1].serialize()]
    elif key == "blocks":
        value = [value[0], value[1], value[2].to_bytes()]
    elif key == "codec":
        value = None if value is None else value.to_map()
    elif key == "attrs":
        value = [value[0], _sorted(value[1]), value[2]]
    elif isinstance(value, tuple):
        value = list(value)
    return {key: value}


def _op_from_stored(op: Any, offset: int) -> Op:
    if not isinstance(op, dict) or len(op) != 1:
        raise Malformed("a change is no map with one key")
    ((key, value),) = op.items()
    if key == "put":
        name, blob = _entry(value)
        return {key: Stored(name, blob, offset)}
    if key in ("delete", "written"):
        return {key: messagepack.text(value)}
    if key == "codec":
        return {key: None if value is None else _compression(value)}
    if key not in ("rename", "rows", "drop_rows", "blocks", "attrs"):
        raise Malformed(f"a change has the unknown kind {key!r}")
    name, *rest = messagepack.array(value, 2 if key in ("rename", "rows", "drop_rows") else 3)
    if key == "attrs":
        added, removed = rest
        of = None if name is None else messagepack.text(name)
        return {key: (of, _attrs(added), [messagepack.text(item) for item in messagepack.array(removed)])}
    name = messagepack.text(name)
    if key == "rename":
        return {key: (name, messagepack.text(rest[0]))}
    if key == "drop_rows":
        return {key: (name, bitmap.parse(messagepack.blob(rest[0])))}
    n_rows = messagepack.count(rest[0])
    if key == "rows":
        return {key: (name, n_rows)}
    return {key: (name, n_rows, _index(rest[1], name))}


def encode_record(record: Record) -> list[Any]:
    """A name and its record, which is a byte string of its own, so that a reader may leave it undecoded."""
    stored = {
        "id": record.id,
        "file": record.file,
        "descr": dtypes.to_stored(record.descr),
        "shape": list(record.layout.shape),
        "fortran_order": record.layout.fortran_order,
        "offset": record.offset,
    }
    if record.codec is not None and record.index is not None:
        stored["codec"] = record.codec.to_map()
        stored["index"] = record.index.to_bytes()
    if record.deleted:
        stored["deleted"] = record.deleted.serialize()
    stored["mtime"] = record.mtime
    if record.attrs:
        stored["attrs"] = _sorted(record.attrs)
    return [record.name, messagepack.pack(stored)]


def _record_id(blob: bytes, offset: int) -> int:
    """The identity in a stored record, which begins with it, and is otherwise not looked at."""
    if blob[1:4] == b"\xa2id" and 0x80 <= blob[0] <= 0x8F and len(blob) > 4:
        mark, rest = blob[4], blob[5:]
        if mark <= 0x7F:
            return mark
        if mark in UINT_LENS and len(rest) >= UINT_LENS[mark]:
            return int.from_bytes(rest[: UINT_LENS[mark]], "big")
    raise _undecodable(Malformed("a record does not begin with its id"), offset)


def decode_record(name: str, blob: bytes, offset: int) -> Record:
    """A record, checked; ``offset`` is where its frame starts.

    Raises
    ------
    FormatError
    """
    try:
        stored = messagepack.fields(
            messagepack.unpack(blob),
            {"id", "file", "descr", "shape", "fortran_order", "offset", "mtime"},
            frozenset({"codec", "index", "deleted", "attrs"}),
        )
        file = messagepack.text(stored["file"])
        shape = [messagepack.count(dim) for dim in messagepack.array(stored["shape"])]
        fortran_order = messagepack.boolean(stored["fortran_order"])
        names.check(name)
        if not names.is_data_file(file):
            raise FormatError(f"array name {quoted(file)}: is not the name of a data file within the store")
        descr = dtypes.from_stored(stored["descr"])
        layout = layout_of(tuple(shape), fortran_order, dtypes.itemsize(descr))
        length = messagepack.count(stored["offset"])
        if length > MAX_HEADER_LEN or layout.nbytes > MAX_NBYTES - MAX_HEADER_LEN:
            raise FormatError(f"shape {shape}: does not fit a file")
        deleted = bitmap.parse(messagepack.blob(stored["deleted"])) if "deleted" in stored else NONE_DELETED
        if check_deleted(deleted, layout):
            raise FormatError(f"shape {shape}: does not have the rows that are deleted")
        codec, index = None, None
        if ("codec" in stored) != ("index" in stored):
            raise FormatError(
                f"array {quoted(name)}: the block index has no codec, or a codec has no index"
            )
        if "codec" in stored:
            codec, index = _codec(stored["codec"]), _index(stored["index"], name)
            try:
                index.check(layout.nbytes, length, codec)
            except IndexFault as error:
                raise FormatError(f"array {quoted(name)}: the block index {error}") from None
        return Record(
            name=name,
            id=messagepack.count(stored["id"]),
            file=file,
            descr=descr,
            layout=layout,
            offset=length,
            codec=codec,
            index=index,
            deleted=deleted,
            mtime=messagepack.integer(stored["mtime"]),
            attrs=_attrs(stored.get("attrs", {})),
        )
    except Malformed as error:
        raise _undecodable(error, offset) from None


def _codec(stored: Any) -> Codec:
    try:
        codec: Codec = Codec.from_map(stored)
    except (UnsupportedError, CorruptStoreError) as error:
        raise Malformed(str(error)) from None
    return codec


def _compression(stored: Any) -> Compression:
    try:
        compression: Compression = Compression.from_map(stored)
    except (UnsupportedError, CorruptStoreError) as error:
        raise Malformed(str(error)) from None
    return compression


def _index(stored: Any, name: str) -> Index:
    try:
        index: Index = Index.parse(messagepack.blob(stored))
    except IndexFault as error:
        raise FormatError(f"array {quoted(name)}: the block index {error}") from None
    return index


def check_attrs(attrs: Attrs) -> None:
    """Check that a store can hold these attributes.

    Raises
    ------
    FormatError
        For a value that is nested deeper than 64 levels.
    """
    for name, value in attrs.items():
        if not messagepack.is_value(value):
            raise FormatError(f"attribute {quoted(name)}: is nested deeper than 64 levels")


def _entry(value: Any) -> tuple[str, bytes]:
    name, blob = messagepack.array(value, 2)
    return messagepack.text(name), messagepack.blob(blob)


def _attrs(value: Any) -> Attrs:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise Malformed("attributes are no map of strings")
    if not all(messagepack.is_value(inner) for inner in value.values()):
        raise Malformed("an attribute is an extension, or nested deeper than 64 levels")
    return _sorted(value)


def _sorted(attrs: Attrs) -> Attrs:
    return dict(sorted(attrs.items(), key=lambda item: item[0].encode("utf-8", "surrogatepass")))
