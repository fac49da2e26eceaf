"""What cannot go well is refused before scans are scored or networks trained, in one sentence."""

import shutil

import pytest

from pipelines import cli
from pipelines.config import load_recipe, write_yaml
from pipelines.detect.folder import read_history, write_history
from pipelines.detect.ready import asked_run
from pipelines.pages import results
from pipelines.study.choose import validation_cases
from pipelines.study.evaluate import demand_columns
from pipelines.study.evaluation import Evaluation
from pipelines.study.protocol import load_protocol
from preprocessing.scans import InputError
from tests.conftest import case_of


@pytest.fixture
def cohort(tmp_path):
    """A folder that passes for a preprocessed cohort of T1 until a scan is read."""
    return bare_cohort(tmp_path / "data", "t1")


def bare_cohort(folder, modality):
    folder.mkdir()
    (folder / "recipe.yaml").write_text(write_yaml(load_recipe(modality)))
    return folder


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--point", "blub"], "unknown operating point 'blub'"),
        (["--point", "shares"], "did you mean 'share'"),
        (["--point", "fixed=abc"], "operating point 'fixed=abc': expected a number"),
        (["--point", "finding=2"], "expected a number between 0 and 1"),
        (["--seeds", "0"], "seeds"),
        (["--folds", "0"], "folds"),
        (["--models", "zero@../x"], "'zero@../x': expected a model, or a variant"),
    ],
)
def test_compare_looks_at_its_arguments_before_it_trains(command, cohort, tmp_path, more, message):
    out = tmp_path / "out"
    given = ("--data", cohort, "--models", "zero", "--out", out)
    done = command("compare", *given, *more)
    assert done.code == cli.USAGE
    assert message in done.err
    assert not (out / "zero").exists()


def test_compare_looks_at_the_test_scans_before_it_trains(command, cohort, tmp_path):
    other = bare_cohort(tmp_path / "other", "flair")
    out = tmp_path / "out"
    given = ("--data", cohort, "--models", "zero", "--out", out)
    done = command("compare", *given, "--test", other)
    assert done.code == cli.USAGE
    assert f"{other}: preprocessed with another modality" in done.err
    assert not (out / "zero").exists()


def test_groups_are_columns_of_the_users_tables(tmp_path):
    cases = [case_of("a", tmp_path, sex="f"), case_of("b", tmp_path)]
    demand_columns(cases, ["sex", "pathology"])
    with pytest.raises(InputError, match=r"by=sexx: no column.*did you mean 'sex'"):
        demand_columns(cases, ["sexx"])
    with pytest.raises(InputError, match="by=image: no column"):
        demand_columns(cases, ["image"])

    labels = tmp_path / "slices.tsv"
    labels.write_text("slice\tlabel\tkind\n0\t1\told\n")
    of_slices = cases[0].model_copy(update={"slice_labels": labels})
    demand_columns([of_slices, cases[1]], ["kind"])


@pytest.mark.parametrize("name", ["score", "findings", "dice"])
def test_a_column_that_is_called_as_a_figure_is_refused(tmp_path, name):
    """Its values would be lost: a scan's row has one place of that name."""
    case = case_of("a", tmp_path, **{name: "90"})
    with pytest.raises(InputError, match=f"by={name}: an evaluation has a figure of that name"):
        demand_columns([case], [name])


def test_one_column_needs_no_brackets():
    assert load_protocol("volumes", ["by=sex"]).by == ("sex",)
    assert load_protocol("volumes", ["by=[sex,site]"]).by == ("sex", "site")


@pytest.mark.parametrize("text", ["[]", '{"key": "x"}', "3"])
def test_a_damaged_evaluation_is_named_and_not_published(tmp_path, monkeypatch, text):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "evaluation.json").write_text(text)
    with pytest.raises(InputError, match=r"evaluation\.json: not an evaluation"):
        Evaluation.read(folder / "evaluation.json")

    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    with pytest.raises(InputError, match="not an evaluation"):
        results.add(folder)
    assert not (tmp_path / "results").exists()


def test_a_run_and_a_modality_that_contradict_each_other(tiny_run):
    assert asked_run(str(tiny_run), "t1") == tiny_run
    assert asked_run(str(tiny_run), None) == tiny_run
    with pytest.raises(InputError, match="is for scans of modality t1, and MODALITY=ct was given"):
        asked_run(str(tiny_run), "ct")


def test_a_run_that_has_lost_what_it_learned_from_is_refused(command, tiny_run, tmp_path):
    """Without its run.json nobody could tell that a test scan was a training scan."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "run.json").unlink()
    (tmp_path / "scan.nii.gz").touch()
    given = ("--input", tmp_path / "scan.nii.gz", "--out", tmp_path / "out")
    done = command("infer", "--run", run, *given)
    assert done.code == cli.USAGE
    assert f"{run}: no run.json" in done.err


@pytest.mark.parametrize("name", ["preprocess", "demo"])
def test_a_negative_seed_is_refused_before_anything_is_made(command, tmp_path, name):
    more = ("--modality", "t1", "--input", tmp_path) if name == "preprocess" else ()
    done = command(name, "--seed", "-1", "--out", tmp_path / "out", *more)
    assert done.code == cli.USAGE
    assert "--seed: -1; expected 0 or a larger whole number" in done.err
    assert not (tmp_path / "out").exists()


def test_choose_says_that_no_scan_validated_a_run(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    write_history(folder, read_history(folder) | {"val_scans": []})
    with pytest.raises(InputError, match=r"no scan validated it.*split 'val'"):
        validation_cases(folder, tmp_path)
