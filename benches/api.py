"""Times the Python API against NumPy and the system doing the same by hand.

    python benches/api.py [DIRECTORY]

Everything is measured in one process, the alternatives in turn, so that the machine's moods meet both. The page
cache is warm. Each line is the median of rounds; a ratio over 1 means that numpack is slower than the reference.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from numpack import NumPack


def paired(title, ours, reference, n_calls, n_rounds=15, unit=1e6, unit_name="us"):
    """Print the median time of one call of each function, measured in alternating rounds."""
    times = {ours: [], reference: []}
    for _ in range(n_rounds):
        for function, rounds in times.items():
            start = time.perf_counter()
            for _ in range(n_calls):
                function()
            rounds.append((time.perf_counter() - start) / n_calls)
    mine, theirs = (statistics.median(rounds) * unit for rounds in times.values())
    print(f"{title:44} {mine:10.2f} {theirs:10.2f} {unit_name:3} {mine / theirs:7.2f}x")


def small_things(folder):
    rows = np.random.default_rng(0).random((100_000, 10)).astype(np.float32)
    np.save(folder / "a.npy", rows)
    for n_arrays in (10, 10_000):
        path = folder / f"{n_arrays}.npk"
        with NumPack(path) as npk:
            npk.save({f"array{n}": rows[:10] for n in range(n_arrays - 1)} | {"a": rows})

        def cycle(path=path):
            npk = NumPack(path)
            npk.open()
            npk.close()

        def reread(manifest=str(path / "metadata.npkm")):
            with open(manifest, "rb") as file:
                file.read()

        paired(f"open + close, {n_arrays} arrays / read a file", cycle, reread, max(3, 3000 // n_arrays))
        with NumPack(path) as npk:
            in_store(npk, n_arrays, folder, rows[:100])


def in_store(npk, n_arrays, folder, rows):
    paired(
        f"lazy + first element, {n_arrays} arrays / np.load mmap",
        lambda: npk.load("a", lazy=True)[0, 0],
        lambda: np.load(folder / "a.npy", mmap_mode="r")[0, 0],
        200,
    )
    data = rows.tobytes()
    raw = os.open(folder / "a.npy", os.O_RDWR)
    where = [7]

    def replace():
        where[0] = where[0] * 7919 % 99_901
        npk.replace({"a": rows}, slice(where[0], where[0] + 100))

    def pwrite():
        where[0] = where[0] * 7919 % 99_901
        os.pwrite(raw, data, 128 + where[0] * 40)

    paired(f"replace 100 rows, {n_arrays} arrays / pwrite", replace, pwrite, 2000)
    end = [os.fstat(raw).st_size]

    def append_raw():
        os.pwrite(raw, data, end[0])
        end[0] += len(data)

    paired(f"append 100 rows, {n_arrays} arrays / pwrite", lambda: npk.append({"a": rows}), append_raw, 500)
    os.close(raw)
    index = np.random.default_rng(1).integers(0, 100_000, 100)
    as_list = index.tolist()
    lazy = npk.load("a", lazy=True)
    mapped = np.load(folder / "a.npy", mmap_mode="r")
    paired("getitem of 100 rows, array / kept memmap", lambda: npk.getitem("a", index), lambda: mapped[index], 1000)
    paired("getitem of 100 rows, list / kept memmap", lambda: npk.getitem("a", as_list), lambda: mapped[as_list], 1000)
    paired("lazy[5] / kept memmap", lambda: lazy[5], lambda: np.array(mapped[5]), 5000)
    paired("lazy[5:105] / kept memmap", lambda: lazy[5:105], lambda: np.array(mapped[5:105]), 5000)
    paired("lazy[list of 100] / kept memmap", lambda: lazy[as_list], lambda: mapped[as_list], 1000)
    paired("load lazy / memmap", lambda: npk.load("a", lazy=True), lambda: np.load(folder / "a.npy", mmap_mode="r"), 200)


def whole_arrays(folder, mib):
    array = np.random.default_rng(0).random(mib << 18, np.float32)
    npy = folder / "whole.npy"
    with NumPack(folder / "whole.npk") as npk:
        npk.save({"a": array})
        np.save(npy, array)
        ms = {"n_rounds": 7, "unit": 1e3, "unit_name": "ms"}
        paired(f"save {mib} MiB / np.save", lambda: npk.save({"a": array}), lambda: np.save(npy, array), 1, **ms)
        paired(f"load {mib} MiB / np.load", lambda: npk.load("a"), lambda: np.load(npy), 1, **ms)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        print(f"{'':44} {'numpack':>10} {'reference':>10}")
        small_things(Path(folder))
        for mib in (1, 16, 256):
            whole_arrays(Path(folder), mib)
