"""The routes of MONAI Label, called as its client calls them."""

import email
import gzip
import json
import threading
import time

import nibabel as nib

from tests.app.conftest import scan_bytes, upload


def parts_of(answer):
    """The parts of a form by name, as a client's parser reads them."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.content)
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
        for part in message.get_payload()
    }


def test_info_lists_the_runs_as_models(solo):
    info = solo.client().get("/info/").json()
    assert {"t1", "ct"} <= set(info["models"])
    assert info["models"]["t1"]["type"] == "segmentation"
    assert info["models"]["t1"]["labels"] == {"anomaly": 1}
    assert "not for diagnosis" in info["description"]


def test_a_file_is_sent_and_its_mask_comes_back(solo):
    client = solo.client()
    over = threading.Event()

    def work():
        while not over.is_set():
            solo.work()
            time.sleep(0.02)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        form = {
            "data": {"params": '{"client_id": "x"}'},
            "files": [("file", ("a.nii", scan_bytes()))],
        }
        answer = client.post("/infer/t1?image=", **form)
    finally:
        over.set()
        worker.join()
    assert answer.status_code == 200, answer.text
    parts = parts_of(answer)
    params = json.loads(parts["params"])
    assert params["label_names"] == {"anomaly": 1}
    assert params["report"]["score"] == 2.5
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(parts["image"]))
    assert mask.get_fdata().sum() == 3 * 3 * 4 + 8


def test_a_study_is_named_and_marked_once(solo):
    client = solo.client()
    study = upload(client, scan_bytes(), run="t1").json()[0]["study"]["id"]
    assert client.post(f"/infer/t1?image={study}&wait=0").status_code == 504
    solo.work()
    mask = client.post(f"/infer/t1?image={study}&output=image")
    assert mask.headers["content-type"] == "application/gzip"
    assert mask.content == client.get(f"/api/studies/{study}/mask.nii.gz").content
    told = client.post(f"/infer/t1?image={study}&output=json").json()
    assert told["image"] == study
    assert solo.work() == 0
    assert client.post(f"/infer/none?image={study}").status_code == 404
    assert client.post("/infer/t1?image=absent").status_code == 404
    assert client.post("/infer/t1").status_code == 422
    bad = client.post("/infer/t1", files=[("file", ("a.nii", b"no"))])
    assert (bad.status_code, "not a readable NIfTI" in bad.json()["detail"]) == (422, True)
