"""What numpack and npkfs do, on real data: `make demo` runs this.

A photograph, its patches, handwritten digits and a table that come with scikit-learn are saved as ordinary .npy files, imported
into a store, mounted, mapped, edited and extended. Every result is compared with the data itself. All of it happens
in a temporary folder that is unmounted and removed however the demo ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpack import NumPack
from sklearn import datasets
from sklearn.feature_extraction.image import extract_patches_2d

NPKFS = Path(sys.executable).parent / "npkfs"
WIDTH = 84  # columns of the account; times end there
BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHADES = " .:-=+*#%@"  # from paper to ink


class Failed(Exception):
    """The demo cannot go on; says why and what to do."""


def step(title):
    print(f"\n{BOLD}{title}{PLAIN}", flush=True)


def tell(text, seconds=None):
    """One line, with the time that its subject took at the right margin."""
    if seconds is None:
        print(f"  {text}", flush=True)
        return
    took = f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.0f} us"
    print(f"  {text}{took:>{max(1, WIDTH - 2 - len(text))}}", flush=True)


def timed(work):
    begin = time.perf_counter()
    value = work()
    return time.perf_counter() - begin, value


def check(condition, what):
    if not condition:
        raise Failed(f"{what}: this is a bug of numpack, please report it")


def npkfs(*arguments):
    """Runs npkfs; returns the seconds it took and what it printed."""
    seconds, done = timed(lambda: subprocess.run([NPKFS, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL))
    if done.returncode != 0:
        raise Failed(f"npkfs {arguments[0]} ended with exit code {done.returncode}:\n{done.stderr.strip()}")
    return seconds, done.stdout


@contextmanager
def temporary_folder():
    """A folder that is removed at the end, after what is mounted in it is unmounted."""
    folder = Path(tempfile.mkdtemp(prefix="numpack-demo-"))
    try:
        yield folder
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave the mount behind
        mountpoint = folder / "mnt"
        for attempt in ([NPKFS, "umount", mountpoint], [NPKFS, "umount", "--lazy", mountpoint]):
            if os.path.ismount(mountpoint):
                subprocess.run(attempt, capture_output=True)
        if os.path.ismount(mountpoint):
            print(f"demo: {mountpoint} is still mounted; run: npkfs umount {mountpoint}", file=sys.stderr)
        else:
            shutil.rmtree(folder)


def real_arrays():
    """Arrays that come with scikit-learn, by the path of their file."""
    china = datasets.load_sample_image("china.jpg")
    return {
        "digits/images": datasets.load_digits().images,
        "patches": extract_patches_2d(china, (8, 8)),
        "photos/china": np.ascontiguousarray(china),
        "tables/breast_cancer": datasets.load_breast_cancer().data,
    }


def draw(digits):
    """Prints 8 x 8 pictures with values from 0 to 16 side by side."""
    shade = (digits / 16 * (len(SHADES) - 1)).round().astype(int)
    for line in range(8):
        tell("  ".join("".join(SHADES[value] * 2 for value in digit[line]) for digit in shade[:5]).rstrip())


def demonstrate(folder):
    arrays = real_arrays()
    for name, array in arrays.items():
        path = folder / "npy" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    size = sum(array.nbytes for array in arrays.values())
    print(f"{BOLD}A photograph, its patches, digits and a table from scikit-learn: {len(arrays)} .npy files, {size / 2**20:.0f} MiB{PLAIN}")

    os.chdir(folder)
    step("$ npkfs import npy data.npk; npkfs info data.npk")
    seconds, _ = npkfs("import", "npy", "data.npk")
    tell("import, every file byte for byte", seconds)
    for line in npkfs("info", "data.npk")[1].splitlines():
        tell(line)

    step("$ npkfs mount data.npk mnt; ls mnt")
    Path("mnt").mkdir()
    seconds, _ = npkfs("mount", "data.npk", "mnt")
    tell("mount: " + "  ".join(sorted(entry.name + "/" * entry.is_dir() for entry in Path("mnt").iterdir())), seconds)
    for name in arrays:
        file = f"{name}.npy"
        check(Path("mnt", file).read_bytes() == Path("npy", file).read_bytes(), f"mnt/{file} has other bytes than were imported")

    step('>>> patches = np.load("mnt/patches.npy", mmap_mode="r")')
    seconds, patches = timed(lambda: np.load("mnt/patches.npy", mmap_mode="r"))
    more, value = timed(lambda: patches[200_000].mean())
    tell(f"open, map {patches.nbytes / 2**20:.0f} MiB of shape {patches.shape}, and the mean of one patch", seconds + more)
    check(value == arrays["patches"][200_000].mean(), "the mapped patch differs")
    seconds, value = timed(lambda: patches.sum(dtype=np.int64))
    tell("the sum of all of it", seconds)
    check(value == arrays["patches"].sum(dtype=np.int64), "the mapped sum differs")
    del patches

    step('>>> images = np.load("mnt/digits/images.npy", mmap_mode="r+"); images[:2] = 16 - images[:2]')
    expected = arrays["digits/images"].copy()
    expected[:2] = 16 - expected[:2]

    def edit():
        images = np.load("mnt/digits/images.npy", mmap_mode="r+")
        images[:2] = 16 - images[:2]
        images.flush()

    seconds, _ = timed(edit)
    tell("open, change two images in place, wait until the disk has them", seconds)

    step('>>> with NumPack("data.npk") as npk: npk.load("digits/images")')
    with NumPack("data.npk") as npk:
        seconds, images = timed(lambda: npk.load("digits/images"))
        draw(images)
        tell("load without the mount: the edit is there", seconds)
        check(np.array_equal(images, expected), "the API does not see the edit")

        step('>>> npk.append({"digits/images": rows}); np.load("mnt/digits/images.npy").shape')
        rows = images[:100]
        seconds, _ = timed(lambda: npk.append({"digits/images": rows}))
        tell("append 100 rows through the API", seconds)
    seconds, longer = timed(lambda: np.load("mnt/digits/images.npy"))
    tell(f"load the file in the mount, shape {images.shape} before, {longer.shape} now", seconds)
    check(np.array_equal(longer, np.concatenate([expected, rows])), "the mount does not see the appended rows")

    step("$ npkfs recompress data.npk patches; ls -s mnt/patches.npy")
    before = os.stat("mnt/patches.npy").st_blocks * 512
    seconds, _ = npkfs("recompress", "data.npk", "patches")
    after = os.stat("mnt/patches.npy").st_blocks * 512
    tell(f"compress the patches while they are mounted: {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB now", seconds)
    check(after < before, "compression saved nothing")
    check(Path("mnt/patches.npy").read_bytes() == Path("npy/patches.npy").read_bytes(), "the compressed file has other bytes")

    step('>>> patches = np.load("mnt/patches.npy", mmap_mode="r+"); patches[1000:1010] = 255')
    expected = arrays["patches"].copy()
    expected[1000:1010] = 255

    def edit_compressed():
        patches = np.load("mnt/patches.npy", mmap_mode="r+")
        patches[1000:1010] = 255
        patches.flush()

    seconds, _ = timed(edit_compressed)
    tell("open, change ten compressed patches in place, wait for the disk", seconds)
    with NumPack("data.npk") as npk:
        seconds, patches = timed(lambda: npk.load("patches"))
    tell("load all of it without the mount: the edit is there", seconds)
    check(np.array_equal(patches, expected), "the API does not see the edit of a compressed array")

    step('$ npkfs config data.npk compress=zstd  >>> np.save("mnt/photos/grey.npy", grey)')
    npkfs("config", "data.npk", "compress=zstd")
    grey = arrays["photos/china"].mean(axis=2).astype(np.uint8)
    seconds, _ = timed(lambda: np.save("mnt/photos/grey.npy", grey))
    tell("a new array, compressed as it is written", seconds)
    check(np.array_equal(np.load("mnt/photos/grey.npy", mmap_mode="r"), grey), "the new array differs")

    step("$ npkfs umount mnt; npkfs verify --deep data.npk")
    seconds, _ = npkfs("umount", "mnt")
    npkfs("verify", "--deep", "data.npk")
    tell("unmount", seconds)
    tell("no damage, and every value above was the right one; the demo's files are removed")


def leave(number, _frame):
    sys.exit(128 + number)


def main():
    for number in SIGNALS:
        signal.signal(number, leave)
    start = os.getcwd()
    try:
        with temporary_folder() as folder:
            try:
                demonstrate(folder)
            finally:
                os.chdir(start)
    except Failed as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
