"""The data of the benchmarks of compressed arrays, made from fixed seeds and kept for the next run.

What a codec gets out of an array is a property of the array. Four kinds stand for what people store: noise, in which
there is nothing to be gained but the exponents; a smooth field with all bits of its mantissas in use, as a simulation
writes it; ids that only grow; photographs. None repeats itself byte for byte, so no codec is flattered.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import progress

MIB = 2**20
GRID = 1024  # points along either side of the field
PATCH = 64  # pixels along either side of a photograph


def noise(nbytes):
    """Random-normal float32, 1024 in a row."""
    return np.random.default_rng(1).standard_normal((nbytes // (4 * GRID), GRID), dtype=np.float32)


def field(nbytes):
    """Waves of many lengths and directions on a square of water, each at its own speed: one time step after another.

    The shortest waves that matter are 64 grid points long: a resolution that simulations are run at.
    """
    random = np.random.default_rng(2)
    along = np.fft.rfftfreq(GRID, 1 / GRID)[None, :]
    across = np.fft.fftfreq(GRID, 1 / GRID)[:, None]
    waves = np.hypot(along, across)
    waves[0, 0] = np.inf  # no offset
    height = waves**-2 * np.exp(-((waves / 16) ** 2))
    phase = random.uniform(0, 2 * np.pi, waves.shape)
    waves[0, 0] = 0
    steps = []
    for step in range(nbytes // (4 * GRID * GRID)):
        spectrum = height * np.exp(1j * (phase - 0.1 * step * np.sqrt(waves)))
        steps.append(np.fft.irfft2(spectrum * GRID, s=(GRID, GRID)).astype(np.float32))
    return np.concatenate(steps)


def ids(nbytes):
    """Sorted int64 ids with gaps of 100 on average, as in a table from which much was deleted."""
    gaps = np.random.default_rng(3).geometric(0.01, nbytes // 8)
    return np.cumsum(gaps, dtype=np.int64) + 1_000_000_000_000


def photographs(nbytes):
    """Patches of 64 x 64 pixels of the two photographs in scikit-learn, uint8.

    Each patch is cut out with a place, angle, size and exposure of its own and resampled, and so no patch has the
    pixels of another, even where both show the same thing.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(4)
    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    levels = np.arange(256) / 255
    patches = np.empty((nbytes // (PATCH * PATCH * 3), PATCH, PATCH, 3), np.uint8)
    for i in range(len(patches)):
        source = sources[i % len(sources)]
        angle, scale = random.uniform(0, 2 * np.pi), random.uniform(0.6, 1.5)
        along, across = scale * np.cos(angle), scale * np.sin(angle)
        reach = PATCH * scale / np.sqrt(2) + 2
        x, y = (random.uniform(reach, side - reach) for side in source.size)
        shift = PATCH / 2
        corner = (x - shift * (along - across), y - shift * (across + along))
        place = (along, -across, corner[0], across, along, corner[1])
        patch = source.transform((PATCH, PATCH), Image.Transform.AFFINE, place, Image.Resampling.BICUBIC)
        exposed = 255 * random.uniform(0.8, 1.1, (3, 1)) * levels ** random.uniform(0.8, 1.25)
        patches[i] = patch.point(np.clip(np.rint(exposed), 0, 255).astype(int).reshape(-1).tolist())
    return patches


@dataclass(frozen=True)
class Kind:
    """How one of the arrays is made, and what tables call it."""

    name: str
    title: str
    make: Callable

    def file(self, folder, mib):
        """The array as an .npy file of about ``mib`` MiB in ``folder``, made there unless an earlier run did."""
        made_by = zlib.crc32(Path(__file__).read_bytes())
        path = Path(folder) / f"{self.name}-{mib}-{made_by:08x}.npy"
        if not path.exists():
            progress(f"  making {mib} MiB of {self.name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            for stale in path.parent.glob(f"{self.name}-{mib}-*"):
                stale.unlink()
            unfinished = path.with_suffix(".part")
            with open(unfinished, "wb") as file:
                np.save(file, self.make(mib * MIB))
            unfinished.rename(path)
        return path


KINDS = [
    Kind("noise", "noise, float32", noise),
    Kind("field", "smooth field, float32", field),
    Kind("ids", "sorted ids, int64", ids),
    Kind("photographs", "photographs, uint8", photographs),
]
