"""A scan from its upload to its result, and the list of studies."""

import gzip
import re

from sqlmodel import Session, update

from app.jobs import LEASE
from app.store import Study, now
from tests.app.conftest import scan_bytes, upload


def test_a_scan_goes_all_the_way(solo):
    client = solo.client()
    answer = upload(client, scan_bytes(), run="t1")
    assert answer.status_code == 201, answer.text
    (arrived,) = answer.json()
    assert (arrived["status"], arrived["study"]["state"]) == ("queued", "queued")
    root = f"/api/studies/{arrived['study']['id']}"
    assert client.get(f"{root}/map.nii.gz").status_code == 404
    assert solo.work() == 1
    study = client.get(root).json()
    assert study["state"] == "done"
    assert (study["score"], study["percentile"], study["anomalous_ml"]) == (2.5, 88.0, 0.6125)
    for name in ("scan", "map", "mask"):
        file = client.get(f"{root}/{name}.nii.gz")
        assert file.status_code == 200
        assert gzip.decompress(file.content)[344:347] == b"n+1"
    assert client.get(f"{root}/reconstruction.nii.gz").status_code == 404
    assert client.get(f"{root}/reference.json").json()["scores"] == [1, 2, 3]
    report = client.get(f"{root}/report.json").json()
    assert report["threshold"] == 1.5
    for path in ("/", f"/studies/{study['id']}", f"/studies/{study['id']}/report", "/account"):
        page = client.get(path, headers={"Accept": "text/html"})
        assert page.status_code == 200, page.text


def test_a_removed_study_leaves_no_voxel_and_its_opinions_stay(site):
    reader = site.program("ray", "reader")
    admin = site.program("ann", "admin")
    study_id = upload(reader, scan_bytes(), run="t1", label="Bed 7").json()[0]["study"]["id"]
    root = f"/api/studies/{study_id}"
    assert admin.post(f"{root}/remove").status_code == 409  # it waits
    site.work()
    said = {"kind": "scan", "value": "disagree"}
    assert reader.post(f"{root}/opinions", json=said).status_code == 201
    assert reader.post(f"{root}/remove").status_code == 403

    told = admin.post(f"{root}/remove").json()
    assert (told["state"], told["label"], told["score"]) == ("refused", "", None)
    assert told["reason"].startswith("removed on 20")
    left = [path for path in site.settings.data.rglob("*.nii*") if path.is_file()]
    assert left == [] and not list((site.settings.data / "results").iterdir())
    assert admin.get(f"{root}/scan.nii.gz").status_code == 404
    assert admin.post(f"{root}/start", json={"run": "t1"}).status_code == 409
    assert admin.get(f"/studies/{study_id}", headers={"Accept": "text/html"}).status_code == 200
    assert len(admin.get(f"{root}/opinions").json()) == 1
    assert "disagree" in admin.get("/api/export/opinions.tsv").text

    (again,) = upload(reader, scan_bytes(), run="t1").json()
    assert (again["status"], again["study"]["id"]) == ("queued", study_id)
    assert site.work() == 1
    assert admin.get(root).json()["state"] == "done"


def test_the_list_says_when_no_worker_takes_what_waits(solo):
    client = solo.client(headers={"Accept": "text/html"})
    said = "no worker takes them"
    upload(client, scan_bytes(), run="t1")
    assert said not in client.get("/").text
    with Session(solo.engine) as session:
        session.execute(update(Study).values(queued=now() - 2 * LEASE))
        session.commit()
    assert said in client.get("/").text
    solo.work()
    assert said not in client.get("/").text


def test_no_run_is_chosen_for_a_scan_that_nothing_is_known_of(solo):
    client = solo.client(headers={"Accept": "text/html"})
    (unknown,) = upload(client, scan_bytes(0)).json()
    (named,) = upload(client, scan_bytes(1), name="sub-1_T1w.nii").json()
    empty = '<option value="">please choose</option>'
    assert client.get("/").text.count(empty) == 1
    assert empty in client.get(f"/studies/{unknown['study']['id']}").text
    page = client.get(f"/studies/{named['study']['id']}").text
    assert empty not in page
    assert '<option value="t1" selected>' in page


def test_a_scan_that_looks_otherwise_than_its_run_waits_to_be_confirmed(solo):
    client = solo.client()
    files = [
        ("file", (f"sub-1_{ending}.nii", scan_bytes(seed)))
        for seed, ending in enumerate(("T1w", "T2w", "ct", "x"))
    ]
    answer = client.post("/api/studies", files=files, data={"run": "t1"})
    told = [(one["status"], one["study"]["state"]) for one in answer.json()]
    waits = ("received", "received")
    queued = ("queued", "queued")
    assert told == [queued, waits, waits, queued]
    other = answer.json()[1]["study"]["id"]
    assert (
        client.post(f"/api/studies/{other}/start", json={"run": "t1"}).json()["state"] == "queued"
    )


def test_a_page_beyond_the_end_is_the_last_one(solo):
    client = solo.client(headers={"Accept": "text/html"})
    upload(client, scan_bytes(), label="Bed 7")
    page = client.get("/?page=9").text
    assert "Bed 7" in page
    assert "<span>1 / 1</span>" in page


def test_a_wrong_address_is_a_sentence_in_ones_own_language(solo):
    client = solo.client(headers={"Accept": "text/html"})
    for path, said in (
        ("/absent", "page"),
        ("/studies/zzz", "study"),
        (f"/studies/{20 * 'a'}", "study"),
    ):
        answer = client.get(path)
        assert answer.status_code == 404
        assert f"There is no such {said}." in answer.text
    token = re.search(r'csrf-token" content="(\w+)"', client.get("/").text)[1]
    client.post("/account/language", data={"language": "fr", "csrf": token})
    assert "Cette page n’existe pas." in client.get("/absent").text
