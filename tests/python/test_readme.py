"""The examples at the top of README.md, run as printed."""

import doctest
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def run(command, folder):
    """Runs in ``folder``, with this interpreter's programs first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_promise_names_a_test_that_there_is():
    section = README.read_text().split("## Is my data safe?")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "tests/" in line]
    assert len(rows) > 10
    for row in rows:
        shown = row.split("|")[3]
        file = None
        for name in re.findall(r"`([^`]+)`", shown):
            if name.startswith("tests/"):
                file = (README.parent / name).read_text()
            else:
                assert re.search(rf"^(async )?(fn|def) {name}\(", file, re.MULTILINE), name


def test_python_example_runs(tmp_path):
    (example,) = blocks("python")
    run([sys.executable, "-W", "error", "-c", example + "\nassert last.tolist() == [1] * 8"], tmp_path)


def test_sessions_print_what_they_show(numpack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sessions = blocks("pycon")
    assert len(sessions) > 2
    for session in sessions:
        globs = {"np": np, "NumPack": numpack.NumPack}
        test = doctest.DocTestParser().get_doctest(session, globs, "README.md", None, 0)
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.usefixtures("can_mount")
def test_shell_example_mounts_what_the_python_example_saved(tmp_path):
    (python,) = blocks("python")
    mounting, *_ = blocks("sh")
    run([sys.executable, "-c", python], tmp_path)
    try:
        listing = run(["sh", "-eu", "-c", mounting], tmp_path)
    finally:
        if os.path.ismount(tmp_path / "mnt"):
            subprocess.run([Path(sys.executable).parent / "npkfs", "umount", "--lazy", tmp_path / "mnt"])
    assert "x.npy" in listing and "ids.npy" in listing
    check = 'with NumPack("data.npk") as npk: assert npk.load("x")[0].tolist() == [3] * 8'
    run([sys.executable, "-c", f"from numpack import NumPack\n{check}"], tmp_path)


@pytest.mark.usefixtures("can_mount")
def test_commands_for_views_run(tmp_path):
    pytest.importorskip("safetensors")
    (python,) = blocks("python")
    (commands,) = (block for block in blocks("sh") if "all.npz" in block)
    run([sys.executable, "-c", python], tmp_path)
    (tmp_path / "mnt").mkdir()
    try:
        said = run(["sh", "-eu", "-c", commands], tmp_path)
    finally:
        if os.path.ismount(tmp_path / "mnt"):
            subprocess.run([Path(sys.executable).parent / "npkfs", "umount", "--lazy", tmp_path / "mnt"])
    assert "['x', 'run/ids', 'grid'] 999" in said
    with np.load(tmp_path / "all.npz") as arrays:
        assert arrays["x"][-1].tolist() == [1] * 8 and arrays["grid"][-1] == 1


def test_commands_for_compressed_arrays_run(tmp_path):
    if shutil.which("npkfs", path=Path(sys.executable).parent) is None:
        pytest.skip("no npkfs next to this Python")
    (python,) = blocks("python")
    (commands,) = (block for block in blocks("sh") if "npkfs recompress" in block)
    run([sys.executable, "-c", python + '\nnp.save("big.npy", np.arange(10**5))'], tmp_path)
    said = run(["sh", "-eu", "-c", commands], tmp_path)
    assert "zstd:1, 64 KiB blocks" in said and "sound: 4 arrays" in said and "nothing was done: 4 arrays" in said
    assert not (tmp_path / "mnt").exists()
