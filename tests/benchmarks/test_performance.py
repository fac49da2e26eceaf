"""`make benchmark`: its parts run on a small scale, and the page shows the file's numbers."""

import cProfile
import json
import pstats
import subprocess
import sys
import time

import pytest

from benchmarks import growth, measure, recommended, scale, stages, start_up
from benchmarks import performance as benchmark
from pipelines import cli
from pipelines.pages import performance, results
from preprocessing.scans import InputError
from tests.pipelines.pages.made_results import made_results, made_run


def test_a_ratio_says_how_many_times_better():
    assert measure.row("a", 2.0, "s", "peer", 10.0)["ratio"] == 5
    assert measure.row("a", 50.0, "1/s", "peer", 10.0, more=True)["ratio"] == 5
    alone = measure.row("a", 2.0, "s")
    assert (
        alone["ratio"] is None
        and alone["peer_value"] is None
        and set(alone) == {"name", "value", "unit", "peer", "peer_value", "ratio"}
    )


def test_runs_alternate_and_their_median_counts(monkeypatch):
    clock = iter([0, 1, 1, 11, 11, 14, 14, 20, 20, 22, 22, 24])
    called = []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    ways = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    assert measure.alternate(ways, 3) == {"a": 2, "b": 6}  # a: 1, 3, 2 s; b: 10, 6, 2 s
    assert called == ["a", "b"] * 3


@pytest.mark.parametrize(
    ("name", "content"), [("none.nii.gz", None), ("cut.nii.gz", b"\x1f\x8b\x08\x00cut")]
)
def test_a_scan_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, capsys, name, content):
    if content:
        (tmp_path / name).write_bytes(content)
    given = ["performance", "--t1", str(tmp_path / name), "--only", "loading"]
    given += ["--out", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit, match="2"):
        cli.run(benchmark.main, benchmark.build_parser())
    said = capsys.readouterr().err
    assert (
        said.startswith("error: ")
        and name in said
        and len(said.splitlines()) == 1
        and not (tmp_path / "out.json").exists()
    )


def test_a_simulated_cohort_goes_through_every_stage(tmp_path):
    """Twenty small volumes: preprocess takes them for done, the rest learns from them."""
    scale.toy_cohort(tmp_path / "data", 20)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").glob("s0*/*")}
    costs = scale.cohort_costs(tmp_path)
    assert costs["peak memory"] > 50 and all(v >= 0 for v in costs.values()) and len(costs) == 8
    assert before == {p: p.stat().st_mtime_ns for p in before}
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluation["summary"]["n_scans"] == 4 and not evaluation["failures"]


def test_growth_is_the_exponent_of_what_each_size_cost(monkeypatch):
    """Cost 3 n^1.5 by n, a cube's side to the third, in the fastest round; the memory stays."""
    monkeypatch.setattr(growth, "PARTS", {"voxels": (None, (2, 4, 8), 3, "voxels")})
    asked = []

    def cost(code, what, side):
        asked.append(side)
        slower = 2 if len(asked) in (1, 5, 9) else 1  # each size once
        return {"step": slower * 3 * (int(side) ** 3) ** 1.5, "memory": 50.0}

    monkeypatch.setattr(growth, "own_process", cost)
    step, memory = growth.growth()
    assert asked == ["2", "4", "8"] * growth.ROUNDS
    assert step["value"] == pytest.approx(1.5) and step["peer_value"] == 1
    assert step["name"] == "step, 8 to 512 voxels: 67.9 to 3.48e+04 s; exponent"
    assert memory["value"] == pytest.approx(0, abs=1e-9)
    assert measure.exponent([1, 2, 3], [5, 5, 5]) == pytest.approx(0, abs=1e-9)


def test_each_growing_part_runs():
    assert set(growth.of_members(1)) == {"map", "memory"}
    assert len(growth.of_voxels(32)) == 5


def test_the_help_of_every_command_is_measured(monkeypatch):
    called = []
    monkeypatch.setattr(start_up, "run_python", called.append)
    rows = start_up.help_of_doors(2)
    verbs = {"preprocess", "train", "infer", "evaluate", "compare", "choose", "synthesise", "demo"}
    assert verbs | {"results"} <= set(start_up.doors())
    assert not {"cli", "config", "spread", "versions", "__init__"} & set(start_up.doors())
    assert [r["name"] for r in rows] == [
        f"python -m pipelines.{door} --help" for door in start_up.doors()
    ]
    assert called == [["-m", f"pipelines.{door}", "--help"] for door in start_up.doors()] * 2


def test_the_performance_page_and_its_plots_show_the_file(tmp_path, monkeypatch):
    rows = []
    for n in (1000, 3000):
        name = f"{n:,} small scans: resume"
        one = measure.row(name, n / 100, "s", "1,000 scans, times", n / 50)
        rows.append({"part": "scale", **one})
    step = measure.row("training step of 64 slices of 64 x 64", 0.25, "s")
    eight = measure.row("eight scans", 700.0, "scans/h", "by one", 400.0, more=True)
    rows += [{"part": "training", **step}, {"part": "workers", **eight}]
    content = {
        "rows": rows,
        "notes": ["peer: not there"],
        "scans": {"t1": "a.nii"},
        "repeats": 3,
        "machine": {"cores": 2},
        "versions": {},
    }
    (tmp_path / "performance.json").write_text(json.dumps(content))
    (tmp_path / "remarks.md").write_text("Remarks.")
    monkeypatch.setattr(performance, "PERFORMANCE", tmp_path / "performance.json")
    monkeypatch.setattr(performance, "PERFORMANCE_REMARKS", tmp_path / "remarks.md")
    page = performance.performance_page()
    assert (
        "| 3,000 small scans: resume | 30 s | 1,000 scans, times | 60 | 2 |" in page
        and "| eight scans | 700 scans/h | by one | 400 | 1.75 |" in page
    )
    assert "- peer: not there" in page
    drawn = {}
    monkeypatch.setattr(
        performance,
        "curves_figure",
        lambda panels: drawn.update({p[0]: p[3] for p in panels}) or b"",
    )
    performance.performance_figure()
    assert drawn["Cohorts of small scans"] == {"resume": [(1000, 10), (3000, 30)]}
    assert drawn["Training step, 64 slices"] == {"vae_cr": [(64, 0.25)]}
    assert drawn["Processes of one thread"] == {"eight scans": [(1, 1.0), (2, 1.75)]}


@pytest.mark.skipif(not performance.PERFORMANCE.is_file(), reason="nothing measured")
def test_the_committed_page_is_the_one_that_the_file_makes():
    page = (results.ROOT / "docs" / "performance.md").read_text()
    assert page == performance.performance_page()
    assert performance.performance_figure().startswith(b"\x89PNG")


def test_what_a_recommended_run_costs_stands_in_the_table_of_choices(tmp_path, monkeypatch):
    """Medians of three alternating processes, by hand; a run that is missing is named."""
    costs = {"intensity": iter([(4.0, 900.0), (6.0, 910.0), (5.0, 920.0)] * 9)}
    monkeypatch.setattr(
        recommended,
        "finished",
        lambda model: None if "head_ct_200" in str(model) else model / "seed-0",
    )
    monkeypatch.setattr(recommended, "raw_scan", lambda run: tmp_path / "scan.nii.gz")
    monkeypatch.setattr(
        recommended,
        "process",
        lambda run, scan, out: next(costs.get(run.parent.name, iter([(20.0, 2500.0)]))),
    )
    monkeypatch.setattr(recommended, "NOTES", [])
    rows = recommended.recommended(3)
    assert {(r["value"], r["unit"], r["peer_value"], r["ratio"]) for r in rows} == {
        (20, "s", 5, 0.25),
        (2500, "MB", 910, 0.364),
    }
    assert (
        "`MODEL=patchcore PRESET=picture`: no finished run of it here" in recommended.NOTES[0]
        and len(recommended.NOTES) == 2
    )
    (tmp_path / "performance.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(results, "PERFORMANCE", tmp_path / "performance.json")
    costs = results.costs_text(results.read_measured())
    lines = [line for line in costs.splitlines() if "PRESET=" in line]
    assert len(lines) == len(rows) // 2 + 2
    assert all(
        line.endswith("| – | – |" if "picture" in line else "| 20 s | 2,500 MB |") for line in lines
    )


def test_a_recommended_run_that_cannot_be_measured_costs_no_other(tmp_path, monkeypatch):
    """One whose cohort is gone and one whose process fails are named; the others are measured."""

    def process(run, scan, out):
        assert scan == tmp_path / run.parents[1].name / "a.nii"  # its table names it from there
        if run.parent.name == "patchcore":
            raise InputError("python -m pipelines.infer ended with 2; run it to see why.")
        return 2.0, 500.0

    monkeypatch.setattr(recommended, "finished", lambda model: model / "seed-0")
    monkeypatch.setattr(recommended, "process", process)
    monkeypatch.setattr(recommended, "NOTES", [])
    monkeypatch.setattr(recommended, "WORK", tmp_path)
    # the last has a folder of runs that is not named after its data
    for data in ("ct_ich", "ds002748", "head_ct_200", "soop_flair_axial", "lgg_flair_networks"):
        (tmp_path / data).mkdir()
        if data != "ds002748":
            (tmp_path / data / "scans.tsv").write_text(
                f"image\tsplit\na.nii\t{'train' if data == 'soop_flair_axial' else 'test'}\n"
            )
    monkeypatch.setattr(recommended, "read_json", lambda path: {"data": path.parents[2].name})
    rows = recommended.recommended(1)
    assert [r["name"].split(", ")[1] for r in rows[::2]] == [
        "MODEL=ensemble PRESET=picture",
        "MODEL=dae PRESET=flair",
        "MODEL=ensemble PRESET=flair",
        "MODEL=ensemble PRESET=ct",
        "MODEL=atlas PRESET=ct",
    ]
    said = "\n".join(recommended.NOTES)
    failed = "python -m pipelines.infer ended with 2; run it to see why."
    assert len(recommended.NOTES) == 4
    assert f"`MODEL=patchcore PRESET=picture`: {failed}" in said
    for data in ("ds002748", "ds002748_planted"):
        assert f"{tmp_path / data / 'scans.tsv'}: No such file or directory." in said
    assert "has no test scan" in said


def test_the_training_of_an_ensemble_counts_its_members(tmp_path):
    members = {"config": {"name": "ensemble", "model": {"members": [{"run": "a"}, {"run": "b@z"}]}}}
    seconds = {"ensemble": (3, 5, 100), "a": (20,), "b@z": (300, 100)}
    runs = {}
    for model, taken in seconds.items():
        config = members if model == "ensemble" else {}
        trainings = [{"data": "work/any", "seconds": s} for s in taken]
        runs[model] = [made_run(training=training, **config) for training in trainings]
    found = made_results(tmp_path / "set", runs)
    assert results.training_seconds(found, "ensemble") == 225  # medians 5 + 20 + 200


@pytest.mark.slow
def test_a_process_that_fails_is_no_measurement(tmp_path):
    with pytest.raises(
        InputError, match=r"pipelines.infer --run .*nowhere.* ended with 2; run it to see why"
    ):
        recommended.process(tmp_path / "nowhere" / "seed-0", tmp_path / "scan.nii.gz", tmp_path)


def test_memory_is_that_of_a_process_and_its_children():
    """Each of two Python processes holds 200 MB of its own."""
    hold = "held = b'1' * 200_000_000; print('held', flush=True)"
    inner = f"import sys; {hold}; sys.stdin.read()"
    outer = (
        f"import subprocess, sys; {hold}; "
        f"subprocess.run([sys.executable, '-c', {inner!r}], stdin=sys.stdin)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", outer], **pipes) as child:
        for _ in range(2):
            assert child.stdout.readline() == b"held\n"
        held = recommended.resident(child.pid)
        child.stdin.close()
    assert 400e6 < held < 500e6
    assert recommended.resident(child.pid) == 0


def test_stages_are_found_by_their_functions(monkeypatch):
    """A stage has the seconds between its call and its return, those of others within it too."""

    def inner():
        time.sleep(0.05)

    def outer():
        inner()
        time.sleep(0.05)

    profile = cProfile.Profile()
    profile.runcall(outer)
    asked = [(name, "test_performance.py", name) for name in ("inner", "outer", "never")]
    monkeypatch.setattr(stages, "STAGES", asked)
    found = stages.stage_seconds(pstats.Stats(profile))
    assert 0.05 <= found["inner"] < found["outer"] and found["outer"] >= 0.1
    assert "never" not in found


def test_every_stage_of_a_profile_is_a_function_that_is_there():
    for _, file, function in stages.STAGES:
        assert f"def {function}(" in (results.ROOT / file).read_text(), (file, function)
