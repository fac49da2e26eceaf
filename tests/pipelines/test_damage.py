"""Damaged runs, tables and stores: one sentence, never a traceback, and no damage passes."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.cohort.cases import read_cases
from pipelines.config import ConfigError
from pipelines.detect.folder import seal
from pipelines.detect.run import load_run
from preprocessing import slices
from preprocessing.files import read_table, write_json, write_table
from preprocessing.scans import InputError, ScanError

QUIET = settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SENTENCES = (InputError, ConfigError, ScanError)


@st.composite
def damages(draw, size=4000):
    """A change of bytes: cut, overwritten, doubled or emptied somewhere."""
    place = draw(st.integers(0, size))
    kind = draw(st.sampled_from(["cut", "byte", "text", "double", "empty"]))
    byte = draw(st.integers(0, 255))
    text = draw(st.sampled_from([b"\0", b"\xff\xfe", b"\n\n", b"[", b"-1", b"nan", b"{}", b"\t\t"]))

    def damage(content):
        at = place % max(1, len(content))
        if kind == "cut":
            return content[:at]
        if kind == "byte":
            return content[:at] + bytes([byte]) + content[at + 1 :]
        if kind == "text":
            return content[:at] + text + content[at:]
        return content + content if kind == "double" else b""

    return damage


@pytest.fixture
def sealed(tiny_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run, run_dir)
    seal(run_dir)
    return run_dir


NAMES = ("config.yaml", "recipe.yaml", "weights.pt", "threshold.json", "reference.json", "run.json")


@QUIET
@given(name=st.sampled_from(NAMES), damage=damages())
def test_a_damaged_run_is_one_sentence_and_a_changed_byte_of_a_sealed_one_is_seen(
    sealed, name, damage
):
    path = sealed / name
    whole = path.read_bytes()
    changed = damage(whole)
    try:
        path.write_bytes(changed)
        if changed == whole or name == "run.json":
            _loads_or_says_why(sealed)
        else:
            with pytest.raises(SENTENCES):
                load_run(sealed, "cpu")
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
@QUIET
@given(name=st.sampled_from(NAMES), damage=damages())
def test_a_damaged_run_of_an_older_version_is_one_sentence(tiny_run, tmp_path, name, damage):
    run_dir = tmp_path / "old"
    if not run_dir.exists():
        shutil.copytree(tiny_run, run_dir)
        write_json(run_dir / "run.json", {"data": "x"})
    path = run_dir / name
    whole = path.read_bytes()
    try:
        path.write_bytes(damage(whole))
        _loads_or_says_why(run_dir)
    finally:
        path.write_bytes(whole)


def _loads_or_says_why(run_dir):
    try:
        load_run(run_dir, "cpu")
    except SENTENCES as error:
        assert str(run_dir) in str(error) or "model of" in str(error)


@pytest.mark.parametrize("value", ["Infinity", "-1", "NaN", "0"])
def test_a_threshold_that_marks_nothing_or_everything_is_refused(sealed, value):
    path = sealed / "threshold.json"
    content = json.loads(path.read_text())
    content["points"]["quantile"]["voxel"] = float(value)
    path.write_text(json.dumps(content))
    seal(sealed)
    with pytest.raises(InputError, match=r"threshold .*; expected a finite number above 0"):
        load_run(sealed, "cpu")


def test_weights_that_could_run_code_are_refused_without_torch_s_advice(sealed):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"weight": Evil()}, sealed / "weights.pt")
    seal(sealed)
    with pytest.raises(InputError, match="loads nothing that could run code") as refused:
        load_run(sealed, "cpu")
    assert "weights_only" not in str(refused.value)


@pytest.fixture
def cohort(tmp_path):
    """Tables and slices of a preprocessed cohort of three scans, by hand."""
    data = tmp_path / "data"
    (data / "slices").mkdir(parents=True)
    names = ["a", "b", "c"]
    rows = []
    for name in names:
        files = {"preproc": f"{name}.nii", "brain": f"{name}_b.nii", "sidecar": f"{name}.json"}
        row = {"id": name, "image": f"{name}.nii", "subject": name, "split": "train"}
        rows.append(row | files | {"label": "healthy", "digest": name * 8})
        brain = np.ones((8, 9, 4), bool)
        volume = np.full(brain.shape, 0.5, np.float32)
        slices.write_arrays(data / "slices", name, volume, brain, np.arange(4))
    write_table(data / "scans.tsv", rows)
    write_json(data / "preprocess.json", {"n_scans": 3, "n_slices": 12})
    index = []
    for name in names:
        for z in range(4):
            entry = {"scan": name, "subject": name, "split": "train", "label": "healthy"}
            index.append(entry | {"row": z, "z": z, "brain_px": 72})
    slices.write_index(data / "slices", index)
    return data


TABLES = ("scans.tsv", "preprocess.json", "slices/index.tsv", "slices/index.json")


@QUIET
@given(name=st.sampled_from((*TABLES, "slices/a_image.npy")), damage=damages(900))
def test_damaged_tables_and_arrays_are_one_sentence(cohort, name, damage):
    path = cohort / name
    whole = path.read_bytes()
    try:
        path.write_bytes(damage(whole))
        try:
            read_cases(cohort)
            store = slices.SliceStore(cohort / "slices")
            for i in range(len(store)):
                store.batch([i])
        except SENTENCES as error:
            assert str(cohort) in str(error)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["scans.tsv", "slices/index.tsv"])
@pytest.mark.parametrize("lines", [1, 2])
def test_a_table_cut_at_the_end_of_a_line_is_seen(cohort, name, lines):
    path = cohort / name
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-lines]))
    with pytest.raises(InputError, match="were written"):
        read_cases(cohort)
        slices.SliceStore(cohort / "slices")


def test_an_index_without_its_count_is_not_believed(cohort):
    """Else an index that was copied alone, and cut on the way, would pass."""
    (cohort / "slices/index.json").unlink()
    with pytest.raises(InputError, match=r"index\.json: no such file.*run 'make preprocess' again"):
        slices.SliceStore(cohort / "slices")


def test_an_undamaged_cohort_reads(cohort):
    assert [case.id for case in read_cases(cohort)] == ["a", "b", "c"]
    assert len(slices.SliceStore(cohort / "slices")) == 12
    assert len(read_table(cohort / "slices" / "index.tsv")) == 12
