"""`make learn` from opinions to a child run; whose word counts; what is refused."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy.stats import binom
from skimage.measure import label

from pipelines.cohort.cases import load, read_cases
from pipelines.detect.batch import result_digest
from pipelines.detect.config import load_run_config
from pipelines.detect.detector import cut
from pipelines.detect.folder import seal
from pipelines.detect.memory import Memory, read_memory, write_memory
from pipelines.detect.run import load_run
from pipelines.study.measure import evaluate_scan
from pipelines.study.memory_loss import (
    Loss,
    demand_small,
    measure_loss,
    planted,
    unseen_healthy,
)
from pipelines.study.rejected import read_opinions
from pipelines.training.calibrate import child_run
from pipelines.training.folds import train_run
from preprocessing.files import write_table
from preprocessing.scans import InputError
from tests.pipelines.detect.test_memory import entry
from tests.pipelines.test_pictures import data, folder  # noqa: F401  the same prepared pictures
from tests.pipelines.test_pipeline import run as command

SETTINGS = ["image_size=[48,48]", "loop.loader_workers=0", "postprocess.rim_mm=0"]
SETTINGS += ["postprocess.min_volume_mm3=0", "postprocess.median=0"]


@pytest.fixture(scope="module")
def parent(data, tmp_path_factory):
    """An atlas of five pictures, validated on three, whose level is lowered to the outline."""
    folder = tmp_path_factory.mktemp("parent")
    healthy = [case for case in read_cases(data) if case.label == "healthy"]
    splits_of = ["train"] * 5 + ["val"] * 3
    rows = [{"id": c.id, "split": s} for c, s in zip(healthy[:8], splits_of, strict=True)]
    write_table(folder / "splits.tsv", rows)
    run_dir = folder / "run"
    train_run(load_run_config("atlas", SETTINGS), data, run_dir, folder / "splits.tsv")
    stored = json.loads((run_dir / "threshold.json").read_text())
    for point in (stored, stored["points"]["finding"]):
        point["voxel"] = load_run(run_dir, "cpu").healthy_voxels.quantile(0.95)
        point["component"] = point["voxel"]
    (run_dir / "threshold.json").write_text(json.dumps(stored))
    seal(run_dir)
    return load_run(run_dir, "cpu")


@pytest.fixture(scope="module")
def scored(parent, data, tmp_path_factory):
    """A healthy picture that the run has not seen, scored: its folder and its report."""
    out = tmp_path_factory.mktemp("scored")
    case = [case for case in read_cases(data) if case.label == "healthy"][9]
    (out / "in").mkdir()
    shutil.copyfile(case.image, out / "in" / case.image.name)
    assert command("infer", "--run", parent.folder, "--input", out / "in", "--out", out) == 0
    report = json.loads((out / f"{case.image.stem}_report.json").read_text())
    assert report["n_components"] > 1 and "memory" not in report
    assert report["components"][0]["strength"] < 2 * parent.point().component
    return out, report


def row_of(report, run, **changes):
    """A row of the app's table: the strongest finding of a report, rejected."""
    found = report["components"][0]
    row = {"study": "s1", "subject": "p1", "user": "ann", "role": "reader", "kind": "component"}
    row |= {"run_digest": result_digest(run, run.point()), "created": "2026-11-26T10:00:00"}
    row |= {"value": "false", "component": 1}
    for name in ("volume_mm3", "peak", "mean", "strength", "peak_voxel", "peak_atlas_mm"):
        value = found[name]
        row[name] = ",".join(map(str, value)) if isinstance(value, list) else value
    return row | changes


def learn(run, source, data, out, *more):
    asked = ("--run", run.folder, "--input", source, "--data", data, "--out", out)
    return command("learn", *asked, *more)


LENIENT = ("--most-lost", "0.99", "--lesions", "480")


def test_a_rejected_finding_is_not_marked_again_and_undo_brings_it_back(
    parent,
    scored,
    data,
    tmp_path,
    capsys,
    monkeypatch,
):
    monkeypatch.setattr(
        "pipelines.study.memory_loss.MOST_NEAR", 1.0
    )  # the pictures are small and flat
    came, report = scored
    run = parent
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    write_table(tmp_path / "opinions.tsv", [row_of(report, run)])
    assert learn(run, tmp_path, data, tmp_path / "child", *LENIENT) == 0
    told = capsys.readouterr().out
    assert (
        "1 rejected findings learned, 1 in all" in told
        and "of 240 lesions planted anywhere" in told
    )
    child = load_run(tmp_path / "child", "cpu")
    assert child.history["parent"] == {"run": "run", "weights": run.weights_digest}
    assert child.points == run.points and child.memory and child.memory.loss["planted"] == 240
    after = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    assert after == before

    assert command("infer", "--run", run.folder, "--input", came / "in", "--out", came / "a") == 0
    assert command("infer", "--run", child.folder, "--input", came / "in", "--out", came / "b") == 0
    name = f"{report['id']}_report.json"
    without, learned = (json.loads((came / f / name).read_text()) for f in "ab")
    assert without["n_components"] - learned["n_components"] == len(learned["memory"]["taken"]) == 1
    (because,) = learned["memory"]["taken"][0]["because"]
    assert (because["study"], because["reader"], because["date"]) == ("s1", "ann", "2026-11-26")
    assert any("like what readers have rejected: 1" in flag for flag in learned["flags"])
    assert learned["score"] == without["score"]
    case = [case for case in read_cases(data) if case.label == "healthy"][9]
    for judge, told in ((run, without), (child, learned)):  # make evaluate counts the same
        row = evaluate_scan(judge, case, run.detector.map(load(case)), judge.point())[0]
        assert row["findings"] == told["n_components"]

    undone = tmp_path / "undone"
    assert command("learn", "--run", child.folder, "--undo", 1, "--out", undone) == 0
    assert "its memory holds 0 entries" in capsys.readouterr().out
    again = load_run(undone, "cpu")
    assert again.memory is None
    assert result_digest(again, again.point()) == result_digest(run, run.point())
    assert command("learn", "--run", child.folder, "--undo", 5, "--out", tmp_path / "x") == 2
    assert "no entry 5 in its memory; it has: 1" in capsys.readouterr().err

    # a memory never stays behind in a child that is calibrated in its place, and takes none's place
    healthy = [case for case in read_cases(data) if case.label == "healthy"][10:15]
    assert child_run(run, healthy, tmp_path / "child").memory is None
    assert learn(run, tmp_path, data, tmp_path / "child", *LENIENT) == 2
    assert "holds another run, which would be lost" in capsys.readouterr().err


def test_a_memory_that_costs_too_much_is_refused_and_nothing_is_written(
    parent,
    data,
    tmp_path,
    capsys,
):
    """Entries are what planted lesions look like: all that is learned is lesions."""
    at = parent.point()
    from pipelines.detect.memory import described

    rows = []
    cases = [case for case in read_cases(data) if case.label == "healthy"][5:8]
    for number, (scan, _, _) in enumerate(planted(cases, Memory(), 240, 0)):
        native = parent.detector.map(scan)
        labels = label(cut(native, at, parent.config.postprocess), connectivity=3)
        for found, features, _ in described(native, labels, at, scan.scan_from_atlas)[:2]:
            row = {"study": f"s{number}", "strength": found["strength"]}
            row |= features.model_dump(exclude={"place_mm"})
            rows += [row | {"peak_atlas_mm": ",".join(map(str, features.place_mm))}]
    write_table(tmp_path / "rejected.tsv", rows)
    asked = (parent, tmp_path / "rejected.tsv", data, tmp_path / "child")
    assert learn(*asked, "--lesions", "480") == 2
    told = capsys.readouterr().err
    assert "refused: of 240 lesions planted anywhere" in told and "at most 5.0% may be lost" in told
    assert not (tmp_path / "child").exists()

    assert learn(*asked, "--lesions", "10") == 2
    assert "a loss is measured on 20 at least" in capsys.readouterr().err


def test_what_is_asked_is_looked_at_before_anything_is_read(parent, data, tmp_path, capsys):
    assert learn(parent, tmp_path / "none", data, tmp_path / "child", "--seed", "-1") == 2
    told = capsys.readouterr().err
    assert told == "error: --seed: -1; expected 0 or a larger whole number.\n"

    (tmp_path / "file").touch()
    out = tmp_path / "file" / "child"
    assert learn(parent, tmp_path / "none", data, out) == 2
    assert capsys.readouterr().err == f"error: {out}: Not a directory.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_half_of_the_lesions_lie_where_the_memory_is(parent, data):
    cases = [case for case in read_cases(data) if case.label == "healthy"][5:8]
    brain = load(cases[0]).brain
    place = np.argwhere(brain)[brain.sum() // 2]
    remembered = entry(place_mm=(load(cases[0]).grid.affine @ [*place, 1])[:3].tolist())
    rows = list(planted(cases, Memory(entries=[remembered]), 12, 0))
    assert sum(near for _, _, near in rows) == 6
    assert all(lesion[tuple(place)] for _, lesion, near in rows if near)
    assert not all(lesion[tuple(place)] for _, lesion, near in rows if not near)
    empty = measure_loss(parent, Memory(), cases, 12)
    assert empty.lost == 0 and empty.found > 0


def test_the_loss_is_measured_on_no_test_scan_by_the_run_s_own_splits(parent, data, tmp_path):
    """A run with splits of its own keeps its own test scans for figures, not those of the table."""
    cases = [case for case in read_cases(data) if case.label == "healthy"]
    own = {case.id: "train" for case in cases[:5]}
    own |= {case.id: "val" for case in cases[5:8]}
    kept = next(case.id for case in cases[8:] if case.split != "test")
    free = next(case.id for case in cases[8:] if case.split == "test")
    own |= {kept: "test", free: "val"}
    folder = tmp_path / "run"
    shutil.copytree(parent.folder, folder)
    write_table(folder / "splits.tsv", [{"id": i, "split": s} for i, s in own.items()])
    seal(folder)
    by_table = {case.id for case in unseen_healthy(parent, data)}
    found = {case.id for case in unseen_healthy(load_run(folder, "cpu"), data)}
    assert kept in by_table and free not in by_table
    assert found == by_table - {kept} | {free}


def test_the_bound_of_a_loss():
    loss = Loss(planted=60, found=40, lost=2, found_near=20, lost_near=10)
    assert loss.share == 0.05
    # P(at most 2 of 40) at that rate is 5 %
    p = loss.most
    tail = binom.cdf(2, 40, p)
    assert tail == pytest.approx(0.05)
    assert Loss(5, 3, 3, 1, 1).most == 1
    demand_small(loss, 0.05)
    for refused, sentence in (
        (Loss(60, 40, 3, 20, 2), r"3 of these are lost with it \(7.5%"),
        (Loss(60, 19, 0, 20, 2), "finds 19 of 60 lesions planted anywhere"),
        (Loss(60, 40, 0, 20, 11), "of 20 found where the memory is 11 are lost; there at most 50%"),
    ):
        with pytest.raises(InputError, match=sentence):
            demand_small(refused, 0.05)


OPINION = {"volume_mm3": 500, "peak": 3, "mean": 2, "peak_voxel": "2,2,2", "kind": "component"}


def opinion(study, user, value, place="'-1.0,2.0,3.0", role="reader", digest="d"):
    row = {"study": study, "user": user, "role": role, "value": value, "run_digest": digest}
    return OPINION | row | {"peak_atlas_mm": place, "created": "2026-11-26T10:00:00"}


def test_whose_word_counts_and_what_is_left_out(tmp_path):
    rows = [
        opinion("a", "ann", "false"),
        opinion("a", "chief", "true", role="reviewer"),
        opinion("a", "ann", "false"),  # later, but a reader's
        opinion("b", "ann", "true"),
        opinion("b", "ann", "false"),  # a second thought
        opinion("b", "ann", "unsure", place="9,9,9"),
        opinion("c", "bob", "false", digest="another"),
        opinion("d", "ann", "agree") | {"kind": "scan", "peak_atlas_mm": ""},
    ]
    write_table(tmp_path / "opinions.tsv", rows)
    said = read_opinions(tmp_path, ["d"])
    assert [(e.study, e.reader, e.place_mm) for e in said.rejected] == [("b", "ann", [-1, 2, 3])]
    assert said.left_out == {
        "unsure": 1,
        "of a result of another run": 1,
        "confirmed in a scan whose truth is not known as a whole": 1,
    }
    for kind in ("scans", "truth"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.nii.gz").touch()
    (row,) = read_opinions(tmp_path, ["d"]).confirmed
    assert (row["id"], row["split"], row["label"]) == ("a", "tune", "abnormal")


def test_words_of_a_spreadsheet_count_and_unknown_ones_are_refused(tmp_path):
    path = tmp_path / "opinions.tsv"
    for words in (("FALSE", "TRUE", "Unsure"), ("false", "true", "unsure")):
        write_table(path, [opinion(s, "ann", word) for s, word in zip("abc", words, strict=True)])
        said = read_opinions(tmp_path, ["d"])
        assert [entry.study for entry in said.rejected] == ["a"]
        unknown = "confirmed in a scan whose truth is not known as a whole"
        assert said.left_out == {"unsure": 1, unknown: 1}
    for word in ("no", "0", ""):
        write_table(path, [opinion("a", "ann", "false"), opinion("b", "ann", word)])
        sentence = f"tsv: study 'b', column 'value': '{word}'; expected one of true, false, unsure"
        with pytest.raises(InputError, match=sentence):
            read_opinions(tmp_path, ["d"])


def test_the_shape_is_that_of_the_mask_of_rejected_findings(tmp_path):
    write_table(tmp_path / "opinions.tsv", [opinion("a", "ann", "false")])
    assert read_opinions(tmp_path, ["d"]).rejected[0].elongation is None
    marked = np.zeros((12, 10, 8), np.uint8)
    marked[1:9, 1:5, 1:5] = 1
    marked[11, 8, 6] = 1  # another finding
    (tmp_path / "false").mkdir()
    nib.save(nib.Nifti1Image(marked, np.diag([1, 1, 1, 1])), tmp_path / "false" / "a.nii.gz")
    assert read_opinions(tmp_path, ["d"]).rejected[0].elongation == pytest.approx(0.5)
    for peak in ("1,x,2", "1,2", "1.5,2,3"):
        row = opinion("a", "ann", "false") | {"peak_voxel": peak}
        write_table(tmp_path / "opinions.tsv", [row])
        with pytest.raises(InputError, match=f"study 'a', column 'peak_voxel': '{peak}'; expected"):
            read_opinions(tmp_path, ["d"])


def test_bad_opinions_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"opinions\.tsv: no such file; give IN= the export"):
        read_opinions(tmp_path, [])
    write_table(tmp_path / "opinions.tsv", [{"study": "a", "volume_mm3": 1}])
    with pytest.raises(InputError, match="no column 'peak_atlas_mm'"):
        read_opinions(tmp_path, [])
    for place in ("1,2", "1,2,far"):
        write_table(tmp_path / "opinions.tsv", [opinion("a", "ann", "false", place=place)])
        with pytest.raises(InputError, match="study 'a', column 'peak_atlas_mm'"):
            read_opinions(tmp_path, ["d"])
    write_table(tmp_path / "opinions.tsv", [opinion("a", "ann", "false") | {"peak": -1}])
    with pytest.raises(InputError, match=r"study 'a', column 'peak'.*greater than 0"):
        read_opinions(tmp_path, ["d"])


def test_a_full_memory_and_what_is_known_already(parent, scored, data, tmp_path, capsys):
    _, report = scored
    full = tmp_path / "full"
    shutil.copytree(parent.folder, full)
    places = [entry(n, place_mm=[n, 0, 0]) for n in range(1, 501)]
    write_memory(Memory(next=501, entries=places), full)
    seal(full)
    run = load_run(full, "cpu")
    write_table(tmp_path / "opinions.tsv", [row_of(report, run)])
    assert learn(run, tmp_path, data, tmp_path / "child") == 2
    assert "would hold 501 rejected findings, and holds 500 at most" in capsys.readouterr().err

    known = row_of(report, run) | {"study": "study-3", "peak_atlas_mm": "3,0,0"}
    write_table(tmp_path / "opinions.tsv", [known])
    assert learn(run, tmp_path, data, tmp_path / "child") == 2
    told = capsys.readouterr()
    assert "1 that the run remembers already" in told.out
    assert "no rejected finding that the run can learn from" in told.err
    assert read_memory(full).next == 501
