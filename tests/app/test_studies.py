"""A scan from its upload to its result, and the list of studies."""

import gzip

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
