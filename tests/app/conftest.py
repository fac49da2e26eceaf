"""A server in this process, scans with a secret in every field, and a detector that is quick."""

import io
import json
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from argon2 import PasswordHasher
from fastapi.testclient import TestClient
from sqlmodel import Session

from app import jobs, users, worker
from app.detect import save, write
from app.jobs import Scored
from app.main import create_app
from app.settings import Settings

SHAPE = (20, 24, 16)  # three lengths: equal ones hide a turned axis
AFFINE = np.array([[-2.0, 0, 0, 19], [0, 1.9, 0.3, -22], [0, -0.3, 2.9, -20], [0, 0, 0, 1]])
SECRET = "Doe^Jane"
PASSWORD = "correct horse battery"


def scan_bytes(seed=0, secret=False, dtype=np.int16, kind=nib.Nifti1Image):
    """A NIfTI file of random voxels; with `secret` every free text of it names a patient."""
    voxels = np.random.default_rng(seed).integers(0, 1000, SHAPE).astype(dtype)
    image = kind(voxels, AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    if secret:
        image.header["descrip"] = SECRET.encode()
        image.header["aux_file"] = SECRET.encode()
        image.header["intent_name"] = SECRET.encode()
        if kind is nib.Nifti1Image:
            image.header["db_name"] = SECRET.encode()
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    stream = io.BytesIO()
    image.file_map["image"].fileobj = stream
    image.to_file_map(image.file_map)
    return stream.getvalue()


def quick_detect(scan, job, folder, say, settings=None):
    """Stands in for norma: marks a block of the scan in milliseconds, with files as a real one."""
    image = nib.Nifti1Image.from_filename(scan)
    marked = np.zeros(image.shape, np.uint8)
    marked[2:5, 3:6, 4:8] = 1
    marked[12:14, 12:14, 10:12] = 1
    say("scoring", 0.5)
    save(nib.Nifti1Image(marked * np.float32(3), image.affine), folder / "map.nii.gz")
    save(nib.Nifti1Image(marked, image.affine), folder / "mask.nii.gz")
    report = {
        "id": job.study_id,
        "status": "scored",
        "score": 2.5,
        "percentile": 88.0,
        "percentile_of": "7 healthy scans",
        "threshold": 1.5,
        "anomalous_mm3": 612.5,
        "n_components": 2,
        "flags": ["noise is high"],
        "components": [
            {
                "place": "left",
                "volume_mm3": 500.0,
                "peak": 3,
                "mean": 3,
                "peak_voxel": [3, 4, 5],
                "peak_mm": [13, -13, -7],
                "peak_atlas_mm": [-12.5, 11.0, 3.0],
                "strength": 3.0,
            },
            {
                "place": "right",
                "volume_mm3": 112.5,
                "peak": 3,
                "mean": 3,
                "peak_voxel": [12, 12, 10],
                "peak_mm": [-5, 4, 5],
                "peak_atlas_mm": [20.0, 1.0, -4.0],
                "strength": 3.0,
            },
        ],
    }
    write(folder / "reference.json", json.dumps({"scores": [1, 2, 3], "of": "7"}).encode())
    return Scored(report, "d" * 64, 0.01)


class Site:
    """A server with its data, and what a test does with it."""

    def __init__(self, data: Path, **settings):
        self.settings = Settings(data=data, workers=0, **settings)
        self.app = create_app(self.settings)
        self.engine = self.app.state.engine

    def client(self, **options):
        # the host that a browser on this machine would name
        return TestClient(self.app, base_url="http://127.0.0.1", follow_redirects=False, **options)

    def user(self, name, role):
        with Session(self.engine) as session:
            users.add_user(session, name, PASSWORD, role)
            session.commit()

    def program(self, name, role):
        """A client that sends a token of a new user."""
        self.user(name, role)
        with Session(self.engine) as session:
            token = users.new_token(session, users.by_name(session, name), "test")
            session.commit()
        client = self.client()
        client.headers["Authorization"] = f"Bearer {token}"
        return client

    def work(self, detect=quick_detect):
        """Compute all that waits, in this process; how many studies that were."""
        count = 0
        while job := jobs.claim(self.engine, jobs.worker_name()):
            worker.compute(self.engine, self.settings.data, job, detect)
            count += 1
        return count


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch):
    """argon2id with the least of time and memory: passwords of tests need no more."""
    monkeypatch.setattr(users, "_hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "data")


@pytest.fixture
def solo(tmp_path):
    return Site(tmp_path / "data", solo=True)


def taken_by(engine, workers):
    """The ids of the studies that so many workers at once take until none waits."""
    taken = []

    def take(name):
        while job := jobs.claim(engine, name):
            taken.append(job.study_id)

    threads = [threading.Thread(target=take, args=(f"far{i}:1",)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def upload(client, content, name="scan.nii", **fields):
    return client.post("/api/studies", files=[("file", (name, content))], data=fields)
