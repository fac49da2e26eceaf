"""The queue: states of a study, killed workers, cancelled work; nothing finished is lost."""

import threading
from datetime import timedelta

import pytest
from sqlmodel import Session, col, select, update

import norma
from app import jobs, worker
from app.jobs import LEASE, Lost, claim, finish, worker_name
from app.store import Audit, Result, Study, now
from tests.app.conftest import quick_detect, scan_bytes, taken_by, upload


@pytest.fixture
def queued(solo):
    """A site, and the id of a study that waits."""
    answer = upload(solo.client(), scan_bytes(), run="t1")
    return solo, answer.json()[0]["study"]["id"]


def study_of(site, study_id):
    with Session(site.engine) as session:
        return session.get_one(Study, study_id)


def silent(site, study_id, seconds=1):
    """Let the lease of a study be over."""
    with Session(site.engine) as session:
        over = update(Study).where(col(Study.id) == study_id)
        session.execute(over.values(lease=now() - timedelta(seconds=seconds)))
        session.commit()


def results(site):
    with Session(site.engine) as session:
        return list(session.exec(select(Result)))


def folders(site):
    return sorted(path.name for path in (site.settings.data / "results").glob("*"))


def test_the_longest_waiting_study_comes_first(solo):
    client = solo.client()
    ids = [upload(client, scan_bytes(i), run="t1").json()[0]["study"]["id"] for i in range(3)]
    assert [s["id"] for s in client.get("/api/queue").json()] == ids
    assert [claim(solo.engine, "other:1").study_id for _ in ids] == ids
    assert claim(solo.engine, "other:1") is None


def test_a_worker_gives_several_signs_of_life_within_its_lease():
    assert timedelta(seconds=3 * jobs.BEAT) < LEASE


def test_two_workers_never_hold_one_study(solo):
    client = solo.client()
    for i in range(12):
        upload(client, scan_bytes(i), run="t1")
    taken = taken_by(solo.engine, workers=4)
    assert len(taken) == len(set(taken)) == 12


def test_a_silent_workers_study_is_taken_again_and_the_first_one_is_too_late(queued):
    site, study_id = queued
    first = claim(site.engine, "far:1")
    assert claim(site.engine, "near:1") is None
    silent(site, study_id)
    second = claim(site.engine, "near:1")
    assert second.study_id == study_id
    with pytest.raises(Lost):
        jobs.beat(site.engine, first)
    late = jobs.new_folder(site.settings.data)
    scored = quick_detect(
        site.settings.data / f"scans/{study_id}.nii.gz", first, late, lambda *_: 0
    )
    with pytest.raises(Lost):
        finish(site.engine, first, scored, late)
    assert results(site) == []
    finish(site.engine, second, scored, late)
    assert study_of(site, study_id).state == "done"


def test_a_dead_worker_of_this_machine_is_not_waited_for(queued):
    site, study_id = queued
    host = worker_name().rpartition(":")[0]
    claim(site.engine, f"{host}:4194999")  # above the highest process number
    job = claim(site.engine, worker_name())
    assert job.study_id == study_id
    assert claim(site.engine, worker_name()) is None  # this process lives


def test_a_study_that_kills_its_workers_fails_with_a_reason(queued):
    site, study_id = queued
    for _ in range(jobs.ATTEMPTS):
        assert claim(site.engine, "far:1")
        silent(site, study_id)
    assert claim(site.engine, "far:1") is None
    study = study_of(site, study_id)
    assert (study.state, "5 times" in study.reason) == ("failed", True)
    assert site.client().post(f"/api/studies/{study_id}/start", json={}).json()["state"] == "queued"


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (norma.ScanError("/x/y.nii.gz: the brain is too small."), "refused", "brain is too small"),
        (norma.InputError("no run"), "refused", "no run"),
        (RuntimeError("out of\nluck"), "failed", "unexpected RuntimeError: out of luck"),
        (MemoryError(), "failed", "unexpected MemoryError"),
    ],
)
def test_what_cannot_be_scored_says_why(queued, error, state, reason):
    site, study_id = queued

    def detect(*_):
        raise error

    site.work(detect)
    study = study_of(site, study_id)
    assert study.state == state
    assert reason in study.reason
    assert folders(site) == []


def test_cancelled_work_is_ended_and_leaves_nothing(queued, monkeypatch):
    site, study_id = queued
    monkeypatch.setattr(jobs, "BEAT", 0.02)
    client = site.client()
    ended = threading.Event()

    def detect(*arguments):
        assert client.post(f"/api/studies/{study_id}/cancel").json()["state"] == "received"
        assert ended.wait(10)  # here the worker's process would be no more
        return quick_detect(*arguments)

    job = claim(site.engine, worker_name())
    worker.compute(site.engine, site.settings.data, job, detect, lost=ended.set)
    assert study_of(site, study_id).state == "received"
    assert results(site) == []
    assert folders(site) == []


def test_a_worker_that_is_told_to_end_hands_its_study_back(queued):
    site, study_id = queued

    def detect(*_):
        raise SystemExit(143)

    job = claim(site.engine, worker_name())
    with pytest.raises(SystemExit):
        worker.compute(site.engine, site.settings.data, job, detect)
    study = study_of(site, study_id)
    assert (study.state, study.attempts, folders(site)) == ("queued", 0, [])


def test_an_earlier_result_stands_while_another_is_made(queued):
    site, study_id = queued
    site.work()
    client = site.client()
    first = client.get(f"/api/studies/{study_id}").json()["result_id"]
    client.post(f"/api/studies/{study_id}/start", json={"run": "t1"})
    assert client.get(f"/api/studies/{study_id}/map.nii.gz").status_code == 200
    assert client.post(f"/api/studies/{study_id}/cancel").json()["state"] == "done"
    client.post(f"/api/studies/{study_id}/start", json={"run": "t1"})
    site.work()
    second = client.get(f"/api/studies/{study_id}").json()["result_id"]
    assert second != first
    assert folders(site) == sorted([first, second])
    old = client.get(f"/api/studies/{study_id}/report.json?result={first}").json()
    assert old["result"] == first
    assert client.get(f"/api/studies/{study_id}/report.json?result={'0' * 32}").status_code == 404


def test_what_a_conversion_flagged_is_a_flag_of_the_result(queued):
    site, study_id = queued
    with Session(site.engine) as session:
        session.execute(update(Study).values(notes="gantry tilt is 12 degrees"))
        session.commit()
    site.work()
    report = site.client().get(f"/api/studies/{study_id}/report.json").json()
    assert report["flags"] == ["gantry tilt is 12 degrees", "noise is high"]
    assert study_of(site, study_id).n_flags == 2


def test_a_start_sweeps_what_a_killed_server_left(queued):
    site, _ = queued
    site.work()
    (site.settings.data / "incoming" / "x.part").write_bytes(b"half")
    abandoned = jobs.new_folder(site.settings.data)
    jobs.sweep(site.engine, site.settings.data)
    assert abandoned.exists()  # its worker may live
    jobs.sweep(site.engine, site.settings.data, timedelta(seconds=-1))
    assert len(folders(site)) == 1
    assert list((site.settings.data / "incoming").iterdir()) == []


def test_every_step_is_in_the_audit_log(queued):
    site, _ = queued
    site.work()
    with Session(site.engine) as session:
        lines = [(line.who, line.action) for line in session.exec(select(Audit))]
    assert lines == [("solo", "upload"), ("worker", "done")]
