"""Scans over processes, SLURM jobs and Dask schedulers give the same answers.

And what is lost with a worker or a scheduler.
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import cli, spread
from pipelines.config import ROOT, ConfigError
from preprocessing.files import read_table

pytestmark = pytest.mark.slow


def work(number, folder, deadly=-1, deaths=0, broken=-1):
    """The square of a number.

    The worker of `deadly` is killed the first `deaths` times. `broken` raises every time.
    """
    tries = Path(folder) / f"{number}.tries"
    with open(tries, "a") as handle:
        handle.write(f"{os.getpid()}\n")
    if number == deadly and len(tries.read_text().split()) <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == broken:
        raise ZeroDivisionError(f"number {number}")
    assert (
        os.environ.get("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1") == "1"
    )  # with more, poses vary from run to run
    return number**2, Path.cwd().name, os.environ.get("OMP_NUM_THREADS")


def torch_threads(_):
    """Whether a worker has torch before a scan needs it, and how many threads it takes then."""
    early = "torch" in sys.modules
    import torch

    return early, torch.get_num_threads()


def tries(folder):
    return {int(p.stem): len(p.read_text().split()) for p in folder.glob("*.tries")}


def test_workers_answer_what_this_process_does_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths and all
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    Path("here").mkdir()
    alone = {
        item: result[:2] for item, result, _ in spread.each(partial(work, folder="here"), range(6))
    }
    assert alone == {i: (i**2, tmp_path.name) for i in range(6)}
    shared = list(spread.each(partial(work, folder="here"), range(6), workers=2))
    assert {item: result[:2] for item, result, _ in shared} == alone
    assert {result[2] for _, result, _ in shared} == {str(max(1, os.cpu_count() // 2))}
    processes = [
        set((tmp_path / "here" / f"{i}.tries").read_text().split()) - {str(os.getpid())}
        for i in range(6)
    ]
    assert len(set.union(*processes)) == 2


def test_where_no_process_can_be_started_again_the_command_ends_and_keeps_what_is_done(
    tmp_path, monkeypatch
):
    from distributed.nanny import WorkerProcess

    start = WorkerProcess.start
    begun = []

    async def start_once(process):
        begun.append(process)
        if len(begun) > 1:
            raise OSError("cannot allocate memory")
        return await start(process)

    monkeypatch.setattr(WorkerProcess, "start", start_once)
    monkeypatch.setattr(spread, "PATIENCE", 1.0)
    kept = []
    with pytest.raises(ConfigError, match="EXECUTOR=local: all worker processes ended"):
        for item, *_ in spread.each(
            partial(work, folder=tmp_path, deadly=3, deaths=9), range(6), "local", 1
        ):
            kept.append(item)
    assert set(kept) <= {0, 1, 2} and len(begun) > 1  # what was answered before


def test_one_worker_is_one_process_and_threads_that_the_user_set_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [
        result[2]
        for _, result, _ in spread.each(partial(work, folder=tmp_path), range(6), "local", 1)
    ] == ["3"] * 6
    processes = set()
    for path in tmp_path.glob("*.tries"):
        processes |= set(path.read_text().split())
    assert len(processes) == 1 and str(os.getpid()) not in processes


def test_a_worker_loads_torch_where_a_scan_needs_it_and_it_keeps_to_its_threads(monkeypatch):
    for name in spread.THREADS:
        monkeypatch.setenv(name, "1")
    found = [result for _, result, _ in spread.each(torch_threads, range(2), "local", 1)]
    assert sorted(found) == [(False, 1), (True, 1)]


def test_more_items_than_are_sent_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "AHEAD", 3)
    got = sorted(
        item for item, _, _ in spread.each(partial(work, folder=tmp_path), range(10), "local", 2)
    )
    assert got == list(range(10)) and set(tries(tmp_path).values()) == {1}


def test_a_killed_worker_costs_no_scan_and_a_deadly_scan_itself_alone(tmp_path):
    """Killed once: another worker takes it up.

    Killed every time: that scan is given up with a reason. The others stand.
    """
    once = list(
        spread.each(partial(work, folder=tmp_path, deadly=2, deaths=1), range(5), workers=2)
    )
    assert sorted(item for item, result, _ in once if result[0] == item**2) == list(range(5))
    assert tries(tmp_path)[2] == 2
    always = {
        item: (result, why)
        for item, result, why in spread.each(
            partial(work, folder=tmp_path, deadly=3, deaths=99), range(5), workers=2
        )
    }
    assert always[3] == (None, "the worker process died 3 times (out of memory?).")
    assert [always[i][0][0] for i in (0, 1, 2, 4)] == [0, 1, 4, 16]


def test_an_error_of_no_scan_s_is_tried_once_more_and_raised(tmp_path):
    with pytest.raises(ZeroDivisionError, match="number 1"):
        list(spread.each(partial(work, folder=tmp_path, broken=1), range(3), "local", 1))
    assert tries(tmp_path)[1] == 2


def test_one_ahead_takes_one_core_for_torch_and_leaves_the_others():
    import torch  # not above: workers load this file, and are seen to load torch later

    here = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _, there in spread.one_ahead(lambda _: torch.get_num_threads(), [0]):
            assert there() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(here)


def test_one_ahead_runs_the_next_while_this_one_is_worked_on():
    started = []

    def begin(item):
        started.append(item)
        if item == 2:
            raise ValueError("two")
        return item * 10

    seen = []
    for item, begun in spread.one_ahead(begin, range(4)):
        try:
            seen.append((item, begun()))
        except ValueError as error:
            seen.append((item, str(error)))
        assert max(started) <= item + 1  # one ahead and no more
    assert seen == [(0, 0), (1, 10), (2, "two"), (3, 30)]
    assert list(spread.one_ahead(begin, [])) == []


def test_no_scheduler_at_an_address(tmp_path, monkeypatch):
    monkeypatch.setattr(spread, "ANSWER_S", 1)
    with pytest.raises(
        ConfigError, match=r"EXECUTOR=tcp://127\.0\.0\.1:9: no Dask scheduler answers there"
    ):
        list(spread.each(partial(work, folder=tmp_path), range(2), "tcp://127.0.0.1:9"))


# the commands


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_fewer_than_one_worker_is_refused(text, capsys):
    from pipelines import preprocess

    with pytest.raises(SystemExit) as left:
        preprocess.build_parser().parse_args(
            ["--input", "a", "--modality", "t1", "--out", "b", "--workers", text]
        )
    assert (
        left.value.code == cli.USAGE
        and f"expected a whole number above 0, got '{text}'" in capsys.readouterr().err
    )


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Eighty pictures of a grey square that grows, and one file that is none."""
    folder = tmp_path_factory.mktemp("heads")
    for i in range(80):
        picture = np.zeros((40, 40), np.uint8)
        picture[8:32, 6 : 20 + i // 5] = 120 + np.arange(24)[:, None]
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


def start(out, heads, *more):
    command = [
        sys.executable,
        "-m",
        "pipelines.preprocess",
        "--input",
        str(heads),
        "--modality",
        "picture",
        "--out",
        str(out),
        *map(str, more),
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def service(folder, what, *more):
    """A Dask scheduler or worker of its own, found by a file in `folder`."""
    command = [
        sys.executable,
        "-m",
        f"distributed.cli.dask_{what}",
        "--scheduler-file",
        str(folder / "scheduler.json"),
        "--no-dashboard",
    ]
    return subprocess.Popen(
        [*command, *more], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def wait_for(condition, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def address(folder):
    import json

    path = folder / "scheduler.json"
    wait_for(
        lambda: path.is_file() and path.read_text().rstrip().endswith("}")
    )  # written in more than one go
    return json.loads(path.read_text())["address"]


def test_a_scheduler_that_goes_away_and_comes_back(heads, tmp_path):
    """Killed in the middle: one sentence, and what is finished stands in the table.

    Started again: the rest alone is done.
    """
    out = tmp_path / "out"
    services = []
    try:
        services += [service(tmp_path, "scheduler", "--host", "127.0.0.1", "--port", "0")]
        where = address(tmp_path)
        services += [service(tmp_path, "worker", "--nthreads", "1")]
        first = start(out, heads, "--executor", where)
        wait_for(lambda: len(list(out.glob("*/*_preproc.json"))) >= 5)
        services[0].kill()
        _, error = first.communicate(timeout=120)
        assert (
            first.returncode == cli.USAGE
            and "the scheduler went away; what was finished is kept" in error
            and "Traceback" not in error
        )
        done = {p: p.stat().st_mtime_ns for p in out.glob("*/*_preproc.json")}
        assert 5 <= len(done) < 80 and 0 < len(read_table(out / "scans.tsv")) <= len(done)
        for old in services:
            old.kill()
            old.wait()
        (tmp_path / "scheduler.json").unlink()
        services = [service(tmp_path, "scheduler", "--host", "127.0.0.1", "--port", "0")]
        where = address(tmp_path)
        services += [service(tmp_path, "worker", "--nthreads", "1")]
        again = start(out, heads, "--executor", where)
        again.communicate(timeout=120)
        assert again.returncode == cli.SOME_FAILED
        assert len(read_table(out / "scans.tsv")) == 80 and [
            r["id"] for r in read_table(out / "failures.tsv")
        ] == ["broken"]
        assert {p: p.stat().st_mtime_ns for p in done} == done
    finally:
        for one in services:
            one.kill()
            one.wait()


SBATCH = """#!/bin/sh
# stands in for SLURM: notes the script, runs it in the background and answers as sbatch does
cp "$1" "{folder}/job-$$.sh"
sh "{folder}/job-$$.sh" > "{folder}/job-$$.log" 2>&1 &
echo "Submitted batch job $!"
"""


def test_slurm_jobs_run_the_scans_and_a_dry_run_shows_the_script(heads, tmp_path, monkeypatch):
    for name, text in {
        "sbatch": SBATCH.format(folder=tmp_path),
        "scancel": '#!/bin/sh\nkill "$1" || true\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__QUEUE", "brains")
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__INTERFACE", "lo")
    dry = start(tmp_path / "dry", heads, "--executor", "slurm", "--workers", "3", "--dry-run")
    text, _ = dry.communicate(timeout=60)
    assert dry.returncode == cli.OK and text.startswith(
        "81 scans, in up to 3 jobs on slurm, each job:\n#!"
    )
    assert (
        "#SBATCH -p brains" in text
        and "#SBATCH --cpus-per-task=4" in text
        and "--nthreads 1 " in text
        and "--nworkers 4 " in text
    )
    assert not list(tmp_path.glob("job-*"))
    assert [p.name for p in (tmp_path / "dry").iterdir()] == [cli.LOCK]

    done = start(tmp_path / "out", heads, "--executor", "slurm", "--workers", "1")
    done.communicate(timeout=120)
    assert (
        done.returncode == cli.SOME_FAILED and len(read_table(tmp_path / "out" / "scans.tsv")) == 80
    )
    (script,) = tmp_path.glob("job-*.sh")
    assert "#SBATCH" in script.read_text()
