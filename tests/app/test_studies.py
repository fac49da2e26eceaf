"""A scan from its upload to its result, and the list of studies."""

import gzip

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
