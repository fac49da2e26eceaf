"""The same statements on Postgres; skipped with a word where none is installed."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from app import exports
from app.store import open_store, upgrade
from benchmarks.app_server import free_port
from tests.app.conftest import PASSWORD, Site, scan_bytes, taken_by, upload
from tests.app.test_opinions import say


def found_initdb():
    """The program that makes a data base: on the path, or where Debian has it."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve()
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)


def as_nobody_special(command, cwd):
    """Run a program of Postgres, which refuses to be root."""
    user = {}
    if os.getuid() == 0:
        user = {"user": pwd.getpwnam("postgres").pw_uid, "group": pwd.getpwnam("postgres").pw_gid}
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, **user)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The address of a data base of its own, on loopback."""
    initdb = found_initdb()
    if initdb is None:
        pytest.skip("no Postgres is installed here (Debian: postgresql)")
    folder = Path(tmp_path_factory.mktemp("postgres"))
    if os.getuid() == 0:
        entry = pwd.getpwnam("postgres")
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        for parent in folder.parents:
            if parent.owner() == "root" and parent != Path("/") and "pytest" in str(parent):
                parent.chmod(0o711)
    data = folder / "data"
    port = free_port()
    as_nobody_special([initdb, "-D", data, "-A", "trust", "-U", "norma", "-N"], folder)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = initdb.with_name("pg_ctl")
    start = [control, "-D", data, "-o", options, "-l", folder / "log", "-w", "start"]
    as_nobody_special(start, folder)
    yield f"postgresql+psycopg://norma@127.0.0.1:{port}/postgres"
    as_nobody_special([control, "-D", data, "-m", "immediate", "stop"], folder)


def test_the_app_works_on_postgres(postgres, tmp_path):
    engine = open_store(postgres)
    upgrade(engine)
    upgrade(engine)
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []

    site = Site(tmp_path / "data", database=postgres)
    ann = site.program("ann", "reviewer")
    assert site.client().post("/login", data={"name": "ann", "password": "no"}).status_code == 401
    good = {"name": "ann", "password": PASSWORD}
    assert site.client().post("/login", data=good).status_code == 303
    for seed in range(8):
        assert upload(ann, scan_bytes(seed), run="t1").status_code == 201
    assert upload(ann, scan_bytes(0)).json()[0]["status"] == "known"
    taken = taken_by(site.engine, workers=3)
    assert len(taken) == len(set(taken)) == 8
    for study in taken:
        ann.post(f"/api/studies/{study}/cancel")
        ann.post(f"/api/studies/{study}/start", json={"run": "t1"})
    assert site.work() == 8
    listed = ann.get("/api/studies?sort=score&flagged=yes&search=S-&size=5").json()
    assert (listed["total"], len(listed["studies"])) == (8, 5)
    assert say(ann, taken[0], kind="scan", value="agree", comment="a\0b").status_code == 201
    with pytest.raises(DBAPIError, match="never changed"), site.engine.begin() as connection:
        connection.execute(text("UPDATE opinions SET value = 'disagree'"))
    assert exports.export(site.engine, site.settings.data, tmp_path / "out") == {"t1": 1}
    page = ann.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200
