"""The model card: what it says comes from the run and from what was measured."""

import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from models.ensemble import Ensemble
from models.patchcore import Patchcore
from pipelines import card as door
from pipelines.cohort.cases import people_in
from pipelines.cohort.public import Dataset, dataset_of
from pipelines.config import CONFIGS
from pipelines.detect.detector import Detector
from pipelines.detect.folder import read_history, write_history
from pipelines.detect.run import load_run
from pipelines.pages.card import write_card
from preprocessing.files import write_json
from preprocessing.scans import InputError
from tests.pipelines.pages.made_results import made_results, made_run


@pytest.fixture
def run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "mine")
    packed = {"largest_change": 0.0012, "scans": ["a", "b", "c"]}
    history = {
        "packed": packed,
        "data": "ds002748",
        "train_scans": ["a", "b"],
        "people": {"ages": "19 to 55 years"},
    }
    write_history(tmp_path / "mine", read_history(tmp_path / "mine") | history)
    return load_run(tmp_path / "mine", "cpu")


def test_front_matter_data_and_point(run):
    text = write_card(run).read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc0-1.0"
    assert yaml.safe_load(front)["datasets"] == ["ds002748"]
    assert "not a medical device" in body.lower()
    for said in (
        "| healthy scans to train on | 2 |",
        "19 to 55 years",
        "set by hand for the tests",
        "maps of 3 scans change by 0.12% at most",
    ):
        assert said in body
    assert "Nothing yet" in body and "No picture of a test scan" in body


def test_measurements_and_the_worst_cases(run):
    scans = [
        {"id": "sick", "label": "abnormal", "findings": 0, "score": 2.0},
        {"id": "well", "label": "healthy", "findings": 1, "score": 1.0},
    ]
    more = {"model": "vae_cr", "data": "set", "protocol": {"by": []}, "command": "", "key": ""}
    summary = {"n_healthy": 1, "n_abnormal": 1, "scan_auroc": 0.75, "dice_mean": None}
    known = {"n_healthy_reference": 5, "versions": {}, "summary": summary, "scans": scans}
    place = run.folder / "evaluation" / "set"
    (place / "cases").mkdir(parents=True)
    write_json(place / "evaluation.json", made_run() | more | known)
    (place / "cases" / "0_sick.png").write_bytes(b"sick")
    (place / "cases" / "1_well.png").write_bytes(b"well")
    text = write_card(run).read_text()
    assert "| AUROC per scan | 0.750 |" in text and "Dice" not in text
    assert "Marks something in 0 of 1 abnormal scans" in text
    for label, content in (("worst_abnormal", b"sick"), ("highest_healthy", b"well")):
        name = f"card_set_{label}.png"
        assert f"({name})" in text and (run.folder / name).read_bytes() == content


def test_pictures_of_a_data_set_that_may_not_be_passed_on_stay_out(run, tmp_path):
    more = {"model": "vae_cr", "data": "ct_ich", "protocol": {"by": []}, "command": "", "key": ""}
    scans = [{"id": "sick", "label": "abnormal", "findings": 0, "score": 2.0}]
    known = {"n_healthy_reference": 5, "versions": {}, "scans": scans}
    place = tmp_path / "evaluated"
    (place / "cases").mkdir(parents=True)
    write_json(place / "evaluation.json", made_run() | more | known)
    (place / "cases" / "0_sick.png").write_bytes(b"sick")
    text = write_card(run, evaluated=[place]).read_text()
    assert "test scans of `ct_ich`" in text and "![" not in text
    assert not list(run.folder.glob("*.png"))


def test_a_card_says_what_an_ensemble_with_patchcore_holds(run):
    patchcore = Patchcore(cells=4, dimension=3)
    patchcore.memory = torch.zeros(16, 7, 3)
    ensemble = Ensemble([patchcore], [(8, 8)])
    config = run.config.model_copy(deep=True)
    combined = replace(run, detector=Detector(ensemble, config, torch.device("cpu")))
    text = write_card(combined).read_text()
    assert "those of 7 single slices: 3 numbers for each of 4 x 4 cells" in text
    assert "single slices" not in write_card(run).read_text()


def test_figures_of_a_results_folder_with_their_intervals(run, tmp_path):
    results = made_results(tmp_path / "set", {"vae_cr": [made_run()]})
    figure = results.summary.models[0].figures["scan_auroc"]
    figure.mean = 0.8
    figure.sd = 0.0
    figure.interval = (0.7, 0.9)
    text = write_card(run, results, "vae_cr").read_text()
    assert "0.800 [0.700, 0.900]" in text and "Runs of the same settings" in text
    text = write_card(run, results, "vae_cr", larger=True).read_text()
    assert "0.800 [0.700, 0.900]" in text and "Not this run, which is smaller" in text
    with pytest.raises(InputError, match="no model 'atlas', only vae_cr"):
        write_card(run, results, "atlas")


def test_from_the_command_line(run, capsys):
    arguments = door.build_parser().parse_args(["--run", str(run.folder)])
    assert door.main(arguments) == 0
    assert str(run.folder / "README.md") in capsys.readouterr().out


def test_every_data_set_is_described(run):
    for path in (CONFIGS / "dataset").glob("*.yaml"):
        assert isinstance(dataset_of(path.stem), Dataset)
    assert dataset_of("my own") is None


def test_people_in_words():
    rows = [{"age": "20", "sex": "f"}, {"age": "50", "sex": "m"}, {"age": "n/a", "sex": "f"}]
    assert people_in(rows) == {"ages": "20 to 50 years, median 35", "sexes": "2 f, 1 m"}
    assert people_in([{}, {"site": "x"}]) == {}
