"""`pack`, `unpack`, `get_package_info`: a whole store as one file, in the package format of NumPack 0.5 to 0.7.

All numbers are little-endian::

    4 bytes  NPKG
    u32      version: 2
    u8       1 if files may be compressed, else 0
    u32      number of files, then for each of them:
        u32      length of the name, then the name in UTF-8
        u64      length of the file
        u64      bytes that follow if they are compressed; 0 if they are the file as it is
        ...      those bytes: a zstd frame, or a zlib stream, told apart by how they begin
    u32      checksum: from 0 on, for each file, crc32 of the 4 bytes of the file's own crc32

Files are read and written in pieces, so that a package of any size takes little memory.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from numpack._errors import NotAStoreError, PackageError, StoreLockedError, UnsupportedError, system_error

if TYPE_CHECKING:
    # Which of them is there, the type checker cannot know.
    zstd: Any
else:
    # Where neither is there, packages are made with zlib, which every release reads.
    try:
        from compression import zstd
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            zstd = None

_MAGIC = b"NPKG"
_VERSION = 2
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 3
_SUFFIX = ".npkg"

_MANIFEST = "metadata.npkm"
_MANIFEST_MAGIC = b"\x89NPK\r\n\x1a\n"
_LOCK = "metadata.npkm.lock"

_PIECE_LEN = 1 << 20
_MAX_NAME_LEN = 255
_MAX_LOCK_WAIT_SECS = 30.0
_MAX_TRIES = 20
# linux/fs.h: shares the blocks of a file where the file system can.
_FICLONE = 0x40049409


class _Entry(NamedTuple):
    """A file of a package."""

    name: str
    file_len: int
    # As in the package: 0 if it is not compressed.
    packed_len: int

    @property
    def stored_len(self) -> int:
        return self.packed_len or self.file_len


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def pack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    compression: bool = True,
    overwrite: bool = False,
) -> Path:
    """Pack a store into one file, to send or to keep it.

    The package has the state between two commits, whoever writes to the store meanwhile: writers wait while the
    store's files are copied, into a folder beside `target` that is removed again; file systems that share blocks take
    no time and no room for that. Who writes to a mapped array, or in regions (`NumPack.write_rows`), waits for nobody,
    and what is written so meanwhile is in the package or not. The package appears under its name when it is complete
    and on the disk.

    Parameters
    ----------
    source : str or os.PathLike
        The store's directory. Stores of NumPack 0.1 to 0.7 are packed as they are.
    target : str or os.PathLike, optional
        The package; by default ``data.npk.npkg`` beside ``data.npk``.
    compression : bool, default True
        Compress each file, if that makes it smaller: with zstd, or zlib where Python has no zstd.
    overwrite : bool, default False
        Replace a file that is there.

    Returns
    -------
    pathlib.Path
        The package.

    Raises
    ------
    NotAStoreError
        If `source` is no store (a ValueError).
    FileExistsError
        If `target` is there.
    StoreLockedError
        If a writer does not let go of the store for 30 s.
    CorruptStoreError, OSError
    """
    source = Path(source)
    _check_store(source)
    if target is None:
        named = source if source.name and source.name != ".." else source.resolve()
        target = named.with_name(named.name + _SUFFIX)
    target = Path(target)
    _check_free(target, overwrite)
    copy = _beside(target)
    try:
        with _room_for(target):
            copy.mkdir()
            files = _copy_store(source, copy)
            part = _beside(target)
            try:
                with open(part, "xb") as package:
                    _write_package(package, copy, files, compression)
                    package.flush()
                    os.fsync(package.fileno())
                _publish_file(part, target, overwrite)
            finally:
                part.unlink(missing_ok=True)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return target


def unpack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    verify: bool = True,
) -> Path:
    """Unpack a package that `pack` made, or NumPack 0.5 to 0.7.

    The store appears under its name when all of it is unpacked and verified.

    Parameters
    ----------
    source : str or os.PathLike
        The package.
    target : str or os.PathLike, optional
        The store's directory; by default ``data.npk`` beside ``data.npk.npkg``.
    overwrite : bool, default False
        Replace a store that is there. Files in its directory that are not a store's stay. Who has the old store open
        keeps what he has.
    verify : bool, default True
        Compare the checksum. Without it, only files of the wrong length and damaged compressed ones are noticed.

    Returns
    -------
    pathlib.Path
        The store's directory.

    Raises
    ------
    PackageError
        If `source` is no package, is cut off, has a bad checksum, or has a file that would land outside of the
        store's directory (a ValueError and a RuntimeError). Nothing is left behind.
    FileExistsError
        If `target` is there; with `overwrite`, if it is no store.
    OSError
    """
    source = Path(source)
    if target is None:
        if source.suffix != _SUFFIX or not source.stem:
            raise PackageError(f"{source}: the name does not end in {_SUFFIX}; say where to unpack it: target=")
        target = source.with_suffix("")
    target = Path(target)
    with _opened(source) as package:
        _check_free(target, overwrite)
        if overwrite and target.exists() and not (target / _MANIFEST).exists():
            if not target.is_dir() or any(target.iterdir()):
                what = "is there and is no store; remove it, or unpack to another place"
                raise FileExistsError(errno.EEXIST, what, str(target))
        part = _beside(target)
        try:
            with _room_for(target):
                part.mkdir(parents=True)
                _read_package(package, source, part, verify)
                _publish_folder(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def get_package_info(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a package, without unpacking it.

    Parameters
    ----------
    source : str or os.PathLike

    Returns
    -------
    dict
        ``version`` (2), ``compression`` (whether files may be compressed), ``compression_name`` ('zstd', 'zlib' or
        'none'), ``file_count``, ``files`` (list of dicts with ``name``, ``original_size`` and ``compressed_size`` in
        bytes), ``total_original_size``, ``total_compressed_size``, ``package_size`` (bytes), and
        ``compression_ratio``, how many times larger the files are than in the package.

    Raises
    ------
    PackageError
        If it is no package, or is cut off.
    OSError
    """
    source = Path(source)
    names = {True: "zstd", False: "zlib"}
    methods = set()
    with _opened(source) as package:
        reader = _Reader(package, source)
        compressed, n_files = reader.header()
        files: list[dict[str, Any]] = []
        for _ in range(n_files):
            entry = reader.entry()
            if entry.packed_len:
                begin = reader.take(min(4, entry.packed_len))
                methods.add(names[begin == _ZSTD_MAGIC])
                reader.skip(entry.packed_len - len(begin))
            else:
                reader.skip(entry.file_len)
            files.append(
                {"name": entry.name, "original_size": entry.file_len, "compressed_size": entry.stored_len}
            )
        reader.number("<I")
        reader.end()
    original = sum(entry["original_size"] for entry in files)
    stored = sum(entry["compressed_size"] for entry in files)
    return {
        "version": _VERSION,
        "compression": compressed,
        "compression_name": "+".join(sorted(methods)) or "none",
        "file_count": len(files),
        "files": files,
        "total_original_size": original,
        "total_compressed_size": stored,
        "package_size": source.stat().st_size,
        "compression_ratio": original / stored if stored else 1.0,
    }


def _check_store(source: Path) -> None:
    if not source.is_dir():
        what = "is not a directory, and an npk store is one" if source.exists() else "no such directory"
        raise NotAStoreError(f"{source}: {what}")
    if not (source / _MANIFEST).is_file():
        raise NotAStoreError(f"{source}: is not an npk store: it has no {_MANIFEST}")


def _check_free(target: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "already exists; pass overwrite=True to replace it", str(target))


@contextlib.contextmanager
def _room_for(target: Path) -> Iterator[None]:
    """Let an error of a full disk name what there was no room for, and not a file that is gone by then."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise system_error("write", target, error) from error
        raise


def _beside(target: Path) -> Path:
    """A name that nobody else uses, on the file system of `target`."""
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.part")


def _copy_store(source: Path, copy: Path) -> list[str]:
    """Copy the files of a store as they are between two commits; returns the names of those that it consists of."""
    with open(source / _MANIFEST, "rb") as manifest:
        is_ours = manifest.read(len(_MANIFEST_MAGIC)) == _MANIFEST_MAGIC
    if not is_ours:
        _copy_unchanging(source, copy, _files_of_old_store)
        return sorted(os.listdir(copy))
    try:
        lock = os.open(source / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError:
        # What may only be read cannot be locked.
        _copy_unchanging(source, copy, _files_of_store)
    else:
        try:
            _lock_writers(source, lock)
            _copy_files(source, copy, _files_of_store(source))
        finally:
            os.close(lock)
    # What a writer that died left behind is not the store's.
    from numpack._store import NumPack

    with NumPack(copy) as npk:
        arrays = npk.get_metadata()["arrays"].values()
    return [_MANIFEST, *sorted(array["data_file"] for array in arrays)]


def _files_of_store(source: Path) -> list[str]:
    data = (name for name in os.listdir(source) if name.startswith("data_") and name.endswith(".npkd"))
    return [_MANIFEST, *data]


def _files_of_old_store(source: Path) -> list[str]:
    """All files but those that old releases lock.

    Raises
    ------
    UnsupportedError
        If an array is in several files, in a folder of their own: a package has no folders.
    """
    if any(name.endswith("_segments") for name in os.listdir(source)):
        raise UnsupportedError(
            f"{source}: has arrays in several files each, as NumPack 0.7 wrote them, which a package cannot hold; run "
            f'"npkfs upgrade {source}" first, or numpack.upgrade'
        )
    files = (entry.name for entry in os.scandir(source) if entry.is_file(follow_symlinks=False))
    return [name for name in files if not name.endswith(".lock")]


def _lock_writers(source: Path, lock: int) -> None:
    """Take the writers' lock (spec/npk-format.md, "Writing"); closing `lock` gives it back."""
    request = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
    deadline = time.monotonic() + _MAX_LOCK_WAIT_SECS
    pause = 50e-6
    while True:
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, request)
            return
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                raise StoreLockedError(
                    f"{source}: in use: waited {_MAX_LOCK_WAIT_SECS} s for the writers' lock, which another process "
                    "holds; try again when it is done"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, 5e-3)


def _copy_unchanging(source: Path, copy: Path, files_of: Callable[[Path], list[str]]) -> None:
    """Copy a store that cannot be locked: again until its manifest was the same before and after."""
    for _ in range(_MAX_TRIES):
        before = _state(source)
        try:
            _copy_files(source, copy, files_of(source))
        except FileNotFoundError:
            pass
        else:
            if _state(source) == before:
                return
        for name in os.listdir(copy):
            (copy / name).unlink()
    raise StoreLockedError(
        f"{source}: changed each of {_MAX_TRIES} times that it was copied; try again when it is not in use"
    )


def _state(source: Path) -> tuple[int, int, int, list[str]]:
    manifest = (source / _MANIFEST).stat()
    return manifest.st_ino, manifest.st_size, manifest.st_mtime_ns, sorted(os.listdir(source))


def _copy_files(source: Path, copy: Path, names: list[str]) -> None:
    for name in names:
        read_from = os.open(source / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not stat.S_ISREG(os.fstat(read_from).st_mode):
                continue
            write_to = os.open(copy / name, os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                _copy_file(read_from, write_to)
            finally:
                os.close(write_to)
        finally:
            os.close(read_from)


def _copy_file(read_from: int, write_to: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(write_to, _FICLONE, read_from)
        return
    end = os.fstat(read_from).st_size
    os.ftruncate(write_to, end)
    at = 0
    while at < end:
        # Holes stay holes.
        try:
            at = os.lseek(read_from, at, os.SEEK_DATA)
        except OSError:
            return
        until = os.lseek(read_from, at, os.SEEK_HOLE)
        while at < until:
            piece = os.pread(read_from, min(_PIECE_LEN, until - at), at)
            if not piece:
                return
            done = 0
            while done < len(piece):
                done += os.pwrite(write_to, memoryview(piece)[done:], at + done)
            at += len(piece)


def _write_package(package: IO[bytes], folder: Path, names: list[str], compression: bool) -> None:
    package.write(_MAGIC + struct.pack("<IBI", _VERSION, bool(compression), len(names)))
    checksum = 0
    for name in names:
        encoded = os.fsencode(name)
        package.write(struct.pack("<I", len(encoded)) + encoded)
        with open(folder / name, "rb") as file:
            of_file = _write_file(package, file, compression)
        checksum = zlib.crc32(struct.pack("<I", of_file), checksum)
    package.write(struct.pack("<I", checksum))


def _write_file(package: IO[bytes], file: IO[bytes], compression: bool) -> int:
    """Write a file's lengths and bytes; returns its crc32."""
    file_len = os.fstat(file.fileno()).st_size
    lengths_at = package.tell()
    package.write(struct.pack("<QQ", file_len, 0))
    begin = package.tell()
    if compression and file_len:
        checksum = 0
        compressor = _compressor(file_len)
        for piece in _pieces(file, file_len):
            checksum = zlib.crc32(piece, checksum)
            package.write(compressor.compress(piece))
            if package.tell() - begin >= file_len:
                break
        else:
            package.write(compressor.flush())
            packed_len = package.tell() - begin
            if packed_len < file_len:
                package.seek(lengths_at)
                package.write(struct.pack("<QQ", file_len, packed_len))
                package.seek(0, os.SEEK_END)
                return checksum
        # It became no smaller.
        package.seek(begin)
        package.truncate()
        file.seek(0)
    checksum = 0
    for piece in _pieces(file, file_len):
        checksum = zlib.crc32(piece, checksum)
        package.write(piece)
    return checksum


def _compressor(file_len: int) -> _Compressor:
    if zstd is None:
        return zlib.compressobj()
    compressor: Any = zstd.ZstdCompressor(_LEVEL)
    compressor.set_pledged_input_size(file_len)
    return cast("_Compressor", compressor)


def _pieces(file: IO[bytes], file_len: int) -> Iterator[bytes]:
    while file_len:
        piece = file.read(min(_PIECE_LEN, file_len))
        if not piece:
            raise OSError(errno.EIO, "the file became shorter while it was packed", str(file.name))
        file_len -= len(piece)
        yield piece


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[IO[bytes]]:
    if not source.is_file():
        what = "is not a file, and a package is one" if source.exists() else "no such file"
        raise PackageError(f"{source}: {what}")
    with open(source, "rb") as package:
        yield package


class _Reader:
    """Takes a package apart. Every length is compared with what is left of the file before it is used."""

    def __init__(self, package: IO[bytes], source: Path) -> None:
        self.package = package
        self.source = source
        self.left = os.fstat(package.fileno()).st_size
        self.names: set[str] = set()

    def error(self, what: str) -> PackageError:
        return PackageError(f"{self.source}: {what}")

    def cut_off(self, n_bytes: int) -> PackageError:
        at = self.package.tell()
        return self.error(f"is cut off: {n_bytes} bytes expected at byte {at}, {self.left} are there")

    def take(self, n_bytes: int) -> bytes:
        found = self.package.read(n_bytes) if n_bytes <= self.left else b""
        if len(found) != n_bytes:
            raise self.cut_off(n_bytes)
        self.left -= n_bytes
        return found

    def skip(self, n_bytes: int) -> None:
        if n_bytes > self.left:
            raise self.cut_off(n_bytes)
        self.left -= n_bytes
        self.package.seek(n_bytes, os.SEEK_CUR)

    def number(self, form: str) -> int:
        (number,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(number)

    def header(self) -> tuple[bool, int]:
        """Whether files may be compressed, and how many there are."""
        if self.left < len(_MAGIC) or self.take(len(_MAGIC)) != _MAGIC:
            raise self.error("is not a package of numpack: it does not begin with NPKG")
        version = self.number("<I")
        if version != _VERSION:
            raise self.error(f"has version {version} of the package format, this release reads version {_VERSION}")
        return self.number("<B") != 0, self.number("<I")

    def entry(self) -> _Entry:
        """The next file's name and lengths."""
        name_len = self.number("<I")
        if not 0 < name_len <= _MAX_NAME_LEN:
            raise self.error(f"has a file name of {name_len} bytes, expected 1 to {_MAX_NAME_LEN}")
        encoded = self.take(name_len)
        if b"/" in encoded or b"\0" in encoded or encoded in (b".", b".."):
            raise self.error(f"has a file that would not be in the store's directory: {os.fsdecode(encoded)!r}")
        name = os.fsdecode(encoded)
        if name in self.names:
            raise self.error(f"has two files of the name {name!r}")
        self.names.add(name)
        return _Entry(name, self.number("<Q"), self.number("<Q"))

    def end(self) -> None:
        if self.left:
            raise self.error(f"has {self.left} bytes after its end")

    def contents(self, entry: _Entry) -> Iterator[bytes]:
        """The bytes of a file, decompressed, in pieces."""
        if not entry.packed_len:
            if entry.file_len > self.left:
                self.skip(entry.file_len)
            yield from self.pieces(entry.file_len)
            return
        if entry.packed_len > self.left:
            self.skip(entry.packed_len)
        begin = self.package.read(4)
        self.package.seek(-len(begin), os.SEEK_CUR)
        decompress = self.zstd_pieces if begin == _ZSTD_MAGIC else self.zlib_pieces
        done = 0
        for piece in decompress(entry):
            done += len(piece)
            if done > entry.file_len:
                break
            yield piece
        if done != entry.file_len:
            raise self.error(
                f"{entry.name!r} has {'more' if done > entry.file_len else done} bytes, expected {entry.file_len}"
            )

    def pieces(self, n_bytes: int) -> Iterator[bytes]:
        while n_bytes:
            piece = self.take(min(_PIECE_LEN, n_bytes))
            n_bytes -= len(piece)
            yield piece

    def zlib_pieces(self, entry: _Entry) -> Iterator[bytes]:
        decompressor = zlib.decompressobj()
        try:
            for piece in self.pieces(entry.packed_len):
                while piece and not decompressor.eof:
                    yield decompressor.decompress(piece, _PIECE_LEN)
                    piece = decompressor.unconsumed_tail
            while not decompressor.eof:
                rest = decompressor.decompress(b"", _PIECE_LEN)
                if not rest:
                    break
                yield rest
        except zlib.error as error:
            raise self.error(f"{entry.name!r} cannot be decompressed: {error}") from None

    def zstd_pieces(self, entry: _Entry) -> Iterator[bytes]:
        if zstd is None:
            raise NotImplementedError(
                f"{self.source}: is compressed with zstd, which this Python does not have; "
                'install it with "pip install backports.zstd"'
            )
        decompressor = zstd.ZstdDecompressor()
        try:
            for piece in self.pieces(entry.packed_len):
                while piece or not decompressor.needs_input:
                    if decompressor.eof:
                        # Frames may follow one another.
                        piece = decompressor.unused_data + piece
                        if not piece:
                            break
                        decompressor = zstd.ZstdDecompressor()
                    yield decompressor.decompress(piece, _PIECE_LEN)
                    piece = b""
        except zstd.ZstdError as error:
            raise self.error(f"{entry.name!r} cannot be decompressed: {error}") from None


def _read_package(package: IO[bytes], source: Path, folder: Path, verify: bool) -> None:
    """Unpack all files into an empty folder."""
    reader = _Reader(package, source)
    _, n_files = reader.header()
    checksum = 0
    for _ in range(n_files):
        entry = reader.entry()
        of_file = 0
        with open(folder / entry.name, "xb") as file:
            for piece in reader.contents(entry):
                of_file = zlib.crc32(piece, of_file)
                file.write(piece)
        checksum = zlib.crc32(struct.pack("<I", of_file), checksum)
    expected = reader.number("<I")
    reader.end()
    if _MANIFEST not in reader.names:
        raise reader.error(f"holds no store: it has no {_MANIFEST}")
    if verify and checksum != expected:
        raise reader.error(
            f"has checksum {checksum:#010x}, expected {expected:#010x}: it is damaged; unpack another copy of it, or "
            "pass verify=False to get what is there"
        )


def _publish_file(part: Path, target: Path, overwrite: bool) -> None:
    """Give a file its name, at once."""
    if overwrite:
        os.replace(part, target)
        return
    try:
        # Unlike a renaming, this fails if somebody has made the target meanwhile.
        os.link(part, target)
    except FileExistsError:
        _check_free(target, overwrite)
        raise
    except OSError:
        # There are file systems without hard links.
        _check_free(target, overwrite)
        os.rename(part, target)


def _publish_folder(part: Path, target: Path) -> None:
    """Give a folder its name, at once; a store that has it goes, and what is not a store's in it stays."""
    if not target.exists():
        os.rename(part, target)
        return
    old = _beside(target)
    os.rename(target, old)
    os.rename(part, target)
    for name in os.listdir(old):
        if _is_of_a_store(name):
            (old / name).unlink()
        else:
            os.rename(old / name, target / name)
    old.rmdir()


def _is_of_a_store(name: str) -> bool:
    kinds = (("metadata.npkm", ""), ("data_", ".npkd"), ("tmp_", ".npkd"), ("deleted_", ".npkb"), ("data_", ".npkseg"))
    return name == "save.lock" or any(name.startswith(begin) and name.endswith(end) for begin, end in kinds)
