"""What several test files share: commands in this process, and data that is made once for all."""

import importlib
import io
import os
import runpy
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from pipelines.config import ROOT
from preprocessing.datasets import virtual

TINY = [
    "model.channels=[4,8,8]",
    "image_size=[64,64]",
    "loop.batch_size=16",
    "loop.loader_workers=0",
    "stages.pretrain.max_epochs=1",
    "stages.finetune.max_epochs=1",
    "stages.pretrain.steps_per_epoch=3",
    "stages.finetune.steps_per_epoch=3",
    "postprocess.min_volume_mm3=50",
    "postprocess.median=3",
]
# The chain: a grid that is no wider than its heads need, a coarse fit, which finds them too, and
# no look at other poses.
GRID = (168, 208, 180)
FIT = [f"grid={list(GRID)}", "spacing=2", "registration_spacing=6", "limits.min_pose_ratio=0"]
N_PICTURES = 30


def run(module, *arguments):
    """Run a command in this process; returns its exit code."""
    from pipelines import cli

    command = importlib.import_module(f"pipelines.{module}")
    old = sys.argv
    sys.argv = [module, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as done:
            cli.run(command.main, command.build_parser())
    finally:
        sys.argv = old
    return done.value.code


def own_copy(tmp_path_factory, name, make):
    """This process's own copy of a folder that `make(folder)` fills once for all workers.

    Workers of pytest-xdist share the parent of their temporary folders; the first one makes it.
    """
    root = tmp_path_factory.getbasetemp()
    if root.name.startswith("popen-"):
        root = root.parent
    made = root / f"made-{name}"
    done = root / f"made-{name}.done"
    with FileLock(root / f"made-{name}.lock"):
        if not done.exists():
            make(made)
            done.touch()
    return shutil.copytree(made, tmp_path_factory.mktemp(name) / "own")


def draw_nothing(patch):
    """Let no figure of matplotlib be drawn: pages get an empty picture in its place.

    For tests of what a page says; those of figures and of the chain draw theirs.
    """
    from evaluation.figures import curves, plots

    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG")
    for module in (plots, curves):
        patch.setattr(module, "png_of", lambda *_, **__: picture.getvalue())


def twice_as_coarse():
    """The virtual cohort's voxels at twice their size: an eighth of the work."""
    return tuple(tuple(2 * np.array(voxel)) for voxel in virtual.VOXELS)


def make_chain(root):
    """A virtual cohort of four subjects, its preprocessed data, and a run trained on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtual, "VOXELS", twice_as_coarse())
        sizes = {"n_train": 1, "n_val": 1, "n_test_healthy": 1, "n_test_abnormal": 1}
        table = virtual.make_cohort(root / "cohort", **sizes)
    given = ("--input", table, "--modality", "t1", "--out", root / "data", *FIT)
    assert run("preprocess", *given, "--format", "nifti") == 0
    trained = ("--model", "vae_cr", "--data", root / "data", "--out", root / "run")
    assert run("train", *trained, *TINY) == 0


def picture(rng, lesion, shape=(44, 36)):
    """A grey ellipse on black, (rows, columns) uint8, and the mask of a bright square, if any."""
    rows, columns = shape
    y, x = np.mgrid[:rows, :columns]
    inside = ((y - rows / 2 + 0.5) / (0.45 * rows)) ** 2 + (
        (x - columns / 2 + 0.5) / (0.45 * columns)
    ) ** 2 < 1
    image = inside * (0.4 + 0.05 * rng.normal() + 0.02 * rng.normal(size=shape))
    mask = np.zeros(shape, bool)
    if lesion:
        r = rng.integers(14, 24)
        c = rng.integers(11, 19)
        mask[r : r + 6, c : c + 5] = True
        image[mask] = 0.9
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), mask


def make_pictures(root):
    """Thirty pictures, every second with a lesion and a mask, in `raw`; preprocessed in `heads`.

    Pictures 0 and 2, 1 and 3 belong together.
    """
    raw = root / "raw"
    rng = np.random.default_rng(0)
    (raw / "images").mkdir(parents=True)
    (raw / "masks").mkdir()
    rows = ["subject,image,mask,label,group,kind"]
    for i in range(N_PICTURES):
        image, mask = picture(rng, i % 2 == 1)
        Image.fromarray(image).save(raw / "images" / f"{i:02d}.png")
        Image.fromarray((mask * 255).astype(np.uint8)).save(raw / "masks" / f"{i:02d}.png")
        group = ["a", "b"][i % 2] if i < 4 else f"g{i}"
        kind = "square" if i % 2 else ""
        rows.append(f"s{i},images/{i:02d}.png,masks/{i:02d}.png,{i % 2},{group},{kind}")
    (raw / "labels.csv").write_text("\n".join(rows) + "\n")
    given = ("--input", raw, "--modality", "picture", "--out", root / "heads")
    assert run("preprocess", *given, "grid=[48,48,1]") == 0


def in_one_and_two_processes(script, arguments_of, monkeypatch):
    """Run a script as one process, which is this one, and as two that find each other by a port.

    `arguments_of` gives its arguments by the number of processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    one, two = [[str(script), *map(str, arguments_of(world))] for world in (1, 2)]
    monkeypatch.setattr(sys, "argv", one)
    runpy.run_path(one[0])
    done = subprocess.run(
        [sys.executable, *two],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
