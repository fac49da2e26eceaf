"""Seconds until `--help` of every command is printed, and until a training takes its first step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, alternate, row
from benchmarks.scale import toy_cohort
from pipelines.config import ROOT

# Both end with the first optimiser step.
STEP = """
import os, runpy
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *a: os._exit(0))
runpy.run_module("pipelines.train", run_name="__main__")
"""
BARE_STEP = """
import sys, torch, numpy as np
from models.vae_cr import VaeCr
model = VaeCr()
x = torch.from_numpy(np.load(sys.argv[1])[:64].astype(np.float32))
x = torch.nn.functional.interpolate(x, (128, 128))
batch = {"image": x, "mask": torch.ones_like(x)}
batch |= {"z": torch.zeros(64, dtype=int), "seed": torch.arange(64)}
update = model.updates("pretrain")[0]
optimizer = torch.optim.Adam(update.parameters)
update.loss(batch)["loss"].backward()
optimizer.step()
"""
SETTINGS = ("image_size=[128,128]", "loop.batch_size=64", "loop.loader_workers=0")


def start_up(repeats: int) -> list[Row]:
    """Measure how long a user waits for `--help` and for the first step of a training."""
    return [*help_of_doors(2 * repeats + 1), first_step(repeats)]


def doors() -> list[str]:
    """Return the commands, which are the files of pipelines/ that can be run."""
    files = sorted((ROOT / "pipelines").glob("*.py"))
    return [file.stem for file in files if '__name__ == "__main__"' in file.read_text()]


def help_of_doors(repeats: int) -> list[Row]:
    """Measure `--help` of every command; it is to be printed within a second."""
    commands = {door: ["-m", f"pipelines.{door}", "--help"] for door in doors()}
    ways: dict[str, Callable[[], None]] = {
        door: partial(run_python, command) for door, command in commands.items()
    }
    taken = alternate(ways, repeats)
    return [row(f"python -m pipelines.{door} --help", value, "s") for door, value in taken.items()]


def first_step(repeats: int) -> Row:
    """Measure a training from its start to its first step, beside a bare PyTorch script."""
    count = iter(range(1000))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        toy_cohort(data, 4)
        batch = data / "slices" / "batch.npy"
        np.save(batch, np.random.default_rng(0).random((64, 1, 32, 32)).astype(np.float16))

        def train() -> None:
            out = f"{folder}/run{next(count)}"
            given = ["--model", "vae_cr", "--data", str(data), "--out", out, *SETTINGS]
            run_python(["-c", STEP, *given])

        ways: dict[str, Callable[[], None]] = {
            "train": train,
            "bare": partial(run_python, ["-c", BARE_STEP, str(batch)]),
        }
        taken = alternate(ways, repeats)
    name = "start of a training to its first step"
    return row(name, taken["train"], "s", "bare PyTorch script", taken["bare"])


def run_python(command: list[str]) -> None:
    """Run Python from the project's folder; an error where it fails."""
    out = subprocess.DEVNULL
    subprocess.run([sys.executable, *command], cwd=ROOT, stdout=out, stderr=out, check=True)
