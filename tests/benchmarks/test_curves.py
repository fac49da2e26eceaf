"""Learning curves: read from metrics.csv."""

import json
import sys

import pytest

from benchmarks import curves
from preprocessing.scans import InputError

METRICS = """stage,epoch,name,value
vae,0,loss,0.5
vae,0,val_loss,0.75
vae,0,seconds,30
vae,1,loss,0.25
vae,1,val_loss,0.5
vae,1,seconds,60
flow,0,loss,2
flow,0,val_loss,3
flow,0,seconds,6
"""


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "vae"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(METRICS)
    return folder


def test_each_stage_has_its_curve(run):
    assert curves.curves(run) == [
        {
            "run": "runs/vae",
            "stage": "vae",
            "epochs": [
                {"epoch": 1, "loss": 0.5, "val_loss": 0.75},
                {"epoch": 2, "loss": 0.25, "val_loss": 0.5},
            ],
        },
        {
            "run": "runs/vae",
            "stage": "flow",
            "epochs": [{"epoch": 1, "loss": 2.0, "val_loss": 3.0}],
        },
    ]


def test_the_picture_shows_one_of_the_numbers(run, tmp_path, monkeypatch):
    row = curves.curves(run)[0]
    assert curves.drawn(row, "loss") == {
        "training": [(1, 0.5), (2, 0.25)],
        "validation": [(1, 0.75), (2, 0.5)],
    }
    with pytest.raises(InputError, match="--name dice: runs/vae logged epoch, loss, val_loss"):
        curves.drawn(row, "dice")
    out = tmp_path / "curves.json"
    picture = tmp_path / "curves.png"
    monkeypatch.setattr(
        sys, "argv", ["curves", "--runs", str(run), "--out", str(out), "--picture", str(picture)]
    )
    curves.main()
    assert [row["stage"] for row in json.loads(out.read_text())["rows"]] == ["vae", "flow"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_learned_nothing_by_gradient_is_named(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.csv: no such file; give run folders"):
        curves.curves(tmp_path)


def test_a_damaged_file_is_named(run):
    (run / "metrics.csv").write_text(METRICS[:60])
    with pytest.raises(InputError, match=r"metrics\.csv: a damaged row, expected stage, epoch"):
        curves.curves(run)
