"""Who may do what: logins, sessions, tokens, roles, other sites, and where the server binds."""

import re
import socket
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlmodel import Session, col, select

from app import main, users
from app.settings import Settings, SettingsError
from app.store import Audit, Login, Token, User, now
from tests.app.conftest import PASSWORD, Site, scan_bytes, upload

HTML = {"Accept": "text/html"}


def log_in(client, name, password=PASSWORD, **fields):
    return client.post("/login", data={"name": name, "password": password, **fields})


def browser(site, name, role):
    """A client with the session of a new user, and the token of its pages."""
    site.user(name, role)
    client = site.client()
    assert log_in(client, name).status_code == 303
    page = client.get("/account", headers=HTML).text
    client.csrf = re.search(r'csrf-token" content="(\w+)"', page)[1]
    return client


def test_nobody_sees_anything_without_a_login(site):
    client = site.client()
    page = client.get("/studies/0?x=1", headers=HTML)
    assert (page.status_code, page.headers["location"]) == (
        303,
        "/login?next=%2Fstudies%2F0%3Fx%3D1",
    )
    for path in (
        "/api/studies",
        "/api/queue",
        "/api/runs",
        f"/api/studies/{'0' * 20}/scan.nii.gz",
        "/info/",
        "/api/export/opinions.tsv",
    ):
        assert client.get(path).status_code == 401
    assert upload(client, scan_bytes()).status_code == 401
    assert client.post("/infer/t1?image=x").status_code == 401


def test_login_and_logout(site):
    client = browser(site, "ann", "reader")
    cookie = client.cookies["norma_session"]
    with Session(site.engine) as session:
        assert not session.get(Login, cookie)  # what is stored cannot be sent
        user = session.exec(select(User)).one()
    assert user.password.startswith("$argon2id$")
    assert client.get("/api/studies").status_code == 200
    assert client.post("/logout", data={"csrf": client.csrf}).status_code == 303
    client.cookies.set("norma_session", cookie)  # a copy of the cookie is worth nothing now
    assert client.get("/api/studies").status_code == 401


def test_the_cookie_is_for_this_site_alone(site, tmp_path):
    site.user("ann", "reader")
    header = log_in(site.client(), "ann").headers["set-cookie"].lower()
    assert "httponly" in header
    assert "samesite=strict" in header
    assert "secure" not in header.replace("norma_session", "")
    proxied = Site(tmp_path / "proxied", behind_proxy=True, hosts=("norma.example",))
    proxied.user("ann", "reader")
    answer = log_in(proxied.client(), "ann")
    assert "secure" in answer.headers["set-cookie"].lower()
    assert "strict-transport-security" in answer.headers


def test_sessions_and_tokens_expire_and_are_revoked(site):
    client = browser(site, "ann", "reader")
    program = site.program("bob", "reader")
    with Session(site.engine) as session:
        for row in (session.exec(select(Login)).one(), session.exec(select(Token)).one()):
            row.expires = now() - timedelta(seconds=1)
            session.add(row)
        session.commit()
    assert client.get("/api/studies").status_code == 401
    assert program.get("/api/studies").status_code == 401
    with Session(site.engine) as session:
        token = session.exec(select(Token)).one()
        token.expires = None
        session.add(token)
        session.commit()
        assert program.get("/api/studies").status_code == 200
        token.revoked = now()
        session.add(token)
        session.commit()
    assert program.get("/api/studies").status_code == 401


def test_a_token_is_made_once_and_stored_as_its_digest(site):
    client = browser(site, "ann", "reader")
    page = client.post("/account/tokens", data={"csrf": client.csrf, "name": "script"}).text
    token = re.search(r"norma_[\w-]+", page)[0]
    program = site.client()
    program.headers["Authorization"] = f"Bearer {token}"
    assert program.get("/api/studies").status_code == 200
    assert token not in client.get("/account", headers=HTML).text
    with Session(site.engine) as session:
        (stored,) = session.exec(select(Token))
    assert token not in repr(stored)
    path = f"/account/tokens/{stored.id}/revoke"
    other = browser(site, "eve", "admin")
    assert other.post(path, data={"csrf": other.csrf}).status_code == 404
    assert client.post(path, data={"csrf": client.csrf}).status_code == 303
    assert program.get("/api/studies").status_code == 401


def test_failed_logins_are_held_back(site):
    site.user("ann", "reader")
    client = site.client()
    for _ in range(users.MOST_FAILED):
        answer = log_in(client, "ann", "wrong")
        assert (answer.status_code, "do not fit" in answer.text) == (401, True)
    answer = log_in(client, "ann")
    assert (answer.status_code, "wait 15 minutes" in answer.text) == (401, True)
    unknown = log_in(client, "nobody", "wrong")
    assert "do not fit" in unknown.text  # the same words as of a known name
    elsewhere = site.client(client=("10.0.0.9", 1))
    assert log_in(elsewhere, "ann").status_code == 303
    with Session(site.engine) as session:
        lines = [line.action for line in session.exec(select(Audit).order_by(col(Audit.id)))]
    assert lines == ["login failed"] * 5 + ["login held back", "login failed", "login"]


def test_another_site_cannot_make_a_browser_change_anything(site):
    client = browser(site, "ann", "reader")
    send = {"files": [("file", ("a.nii", scan_bytes()))]}
    assert client.post("/api/studies", **send).status_code == 403
    assert (
        client.post("/api/studies", headers={"X-CSRF-Token": "0" * 64}, **send).status_code == 403
    )
    good = {"X-CSRF-Token": client.csrf}
    for other in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post("/api/studies", headers=good | other, **send).status_code == 403
    assert client.post("/logout").status_code == 403
    assert client.post("/api/studies", headers=good, **send).status_code == 201
    assert log_in(client, "ann", next="//evil.example").headers["location"] == "/"
    evil = client.post(
        "/login",
        data={"name": "ann", "password": PASSWORD},
        headers={"Origin": "https://evil.example"},
    )
    assert evil.status_code == 403


def test_a_server_without_login_refuses_other_sites_too(solo):
    client = solo.client()
    assert upload(client, scan_bytes()).status_code == 201
    client.headers["Origin"] = "https://evil.example"
    assert upload(client, scan_bytes(1)).status_code == 403
    tricked = solo.client(headers={"Host": "evil.example"})
    assert tricked.get("/api/studies").status_code == 400
    for host in ("localhost:8000", "[::1]:8000", "127.0.0.1"):
        assert solo.client(headers={"Host": host}).get("/api/studies").status_code == 200
    page = solo.client().get("/", headers=HTML)
    assert re.search(r'csrf-token" content="\w{64}"', page.text)


def test_what_was_opened_without_login_is_closed_with_one(solo):
    client = solo.client(headers=HTML)
    assert client.get("/").status_code == 200
    with Session(solo.engine) as session:
        token = users.new_token(session, users.by_name(session, users.SOLO), "script")
        session.commit()
    site = Site(solo.settings.data)
    cookie = {"Cookie": f"norma_session={client.cookies['norma_session']}"}
    for headers in (cookie, {"Authorization": f"Bearer {token}"}):
        assert solo.client(headers=headers).get("/api/studies").status_code == 200
        assert site.client(headers=headers).get("/api/studies").status_code == 401


ADMINS = [("get", "/users"), ("get", "/audit"), ("post", "/users"), ("post", "/users/1")]
REVIEWERS = [("get", "/api/export/opinions.tsv"), ("get", "/api/export/all.zip")]


@pytest.mark.parametrize(("method", "path"), ADMINS + REVIEWERS)
def test_a_role_is_needed(site, method, path):
    form = {"name": "x", "password": PASSWORD, "role": "admin"}
    options = {"data": form} if method == "post" else {}
    roles = ["reader", "reviewer", "admin"]
    needed = 2 if (method, path) in ADMINS else 1
    for rank, role in enumerate(roles):
        client = site.program(role, role)
        answer = getattr(client, method)(path, **options)
        assert (answer.status_code == 403) == (rank < needed), (role, answer.status_code)


def test_a_reader_cancels_the_own_uploads_alone(site):
    ann = site.program("ann", "reader")
    bob = site.program("bob", "reader")
    study = upload(ann, scan_bytes(), run="t1").json()[0]["study"]["id"]
    assert bob.post(f"/api/studies/{study}/cancel").status_code == 403
    for path, mark in (("/", 'data-action="cancel"'), (f"/studies/{study}", 'id="cancel"')):
        assert mark in ann.get(path, headers=HTML).text
        assert mark not in bob.get(path, headers=HTML).text
    assert ann.post(f"/api/studies/{study}/cancel").json()["state"] == "received"
    assert ann.post(f"/api/studies/{study}/cancel").status_code == 409


def test_an_admin_makes_users_and_closes_accounts(site):
    admin = browser(site, "root", "admin")
    csrf = {"csrf": admin.csrf}
    form = {"name": "ann", "password": PASSWORD, "role": "reader"}
    assert admin.post("/users", data=csrf | form).status_code == 303
    assert "already" in admin.post("/users", data=csrf | form).text
    assert (
        "12 characters"
        in admin.post("/users", data=csrf | form | {"name": "b", "password": "x"}).text
    )
    ann = site.client()
    assert log_in(ann, "ann").status_code == 303
    with Session(site.engine) as session:
        ann_id = users.by_name(session, "ann").id
        root_id = users.by_name(session, "root").id
    last = admin.post(f"/users/{root_id}", data=csrf | {"role": "reader", "active": "yes"})
    assert "last admin" in last.text
    assert admin.post(f"/users/{ann_id}", data=csrf | {"role": "reader"}).status_code == 303
    assert ann.get("/api/studies").status_code == 401  # the session ended with the account
    assert log_in(site.client(), "ann").status_code == 401
    page = admin.get("/audit", headers=HTML).text
    assert "user is reader, closed" in page


def test_a_new_password_ends_all_sessions(site):
    client = browser(site, "ann", "reader")
    form = {"csrf": client.csrf, "old": "wrong", "new": "another long password"}
    assert "does not fit" in client.post("/account/password", data=form).text
    assert client.post("/account/password", data=form | {"old": PASSWORD}).status_code == 303
    assert client.get("/api/studies").status_code == 401
    assert log_in(client, "ann").status_code == 401
    assert log_in(client, "ann", "another long password").status_code == 303


def test_pages_carry_a_strict_policy_and_no_inline_code(site):
    admin = browser(site, "root", "admin")
    study = upload(site.program("ann", "reader"), scan_bytes(), run="t1").json()[0]["study"]["id"]
    site.work()
    paths = ["/", f"/studies/{study}", f"/studies/{study}/report", "/account", "/users", "/audit"]
    for path in [*paths, "/login", "/absent"]:
        answer = admin.get(path, headers=HTML)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r'<script(?![^>]*(src=|type="application/json"))', answer.text)
        assert not re.search(r"<style|\sstyle=|\son\w+=|https?://", answer.text), path
    assert admin.get("/absent", headers=HTML).status_code == 404


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "0.0.0.0"}, "TLS"),
        ({"host": "192.168.1.5"}, "TLS"),
        ({"host": "0.0.0.0", "solo": True, "behind_proxy": True}, "no login"),
        ({"solo": True, "behind_proxy": True}, "a proxy would open it"),
        ({"certificate": "a.pem"}, "go together"),
    ],
)
def test_it_does_not_start_open_to_a_network(tmp_path, changes, said):
    with pytest.raises(SettingsError, match=said):
        replace(Settings(data=tmp_path), **changes).check()
    replace(Settings(data=tmp_path), host="0.0.0.0", behind_proxy=True).check()
    replace(Settings(data=tmp_path), host="::1", solo=True).check()
    pem = tmp_path / "both.pem"
    pem.touch()
    replace(Settings(data=tmp_path), host="0.0.0.0", certificate=pem, key=pem).check()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--inbox", "absent"], "INBOX=absent is no folder"),
        (["--runs", "absent"], "RUNS=absent is no folder"),
        (["--certificate", "a.pem", "--key", "a.pem"], "--certificate a.pem is no file"),
        (["--port", "99999"], "PORT=99999: expected a number"),
        (["--workers", "-1"], "WORKERS=-1: expected 0 or more"),
        (["--max-upload-mb", "-5"], "--max-upload-mb, --max-gb and"),
        (["--database", "nonsense"], "DATABASE is no address that is known"),
        (["--database", "postgresql+psycopg://a:b@127.0.0.1:1/c"], "the data base cannot be used"),
        (["--host", "192.0.2.1", "--behind-proxy"], "HOST=192.0.2.1 PORT=8000 cannot be"),
        (["--data", "file"], "DATA: the folder file"),
    ],
)
def test_a_server_that_cannot_start_says_so_in_a_sentence(
    tmp_path, monkeypatch, capsys, line, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["app.main", "--workers", "0", "--data", "site", *line])
    if "--host" not in line:
        monkeypatch.setattr("app.main.check_free", lambda settings: None)
    monkeypatch.setattr("app.main.uvicorn.run", lambda *args, **rest: pytest.fail("it started"))
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {said}")
    assert told.count("\n") == 1


def test_an_address_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Settings(data=tmp_path, port=other.getsockname()[1])
        with pytest.raises(SettingsError, match=rf"PORT={settings.port} cannot be listened on"):
            main.check_free(settings)
    main.check_free(settings)


def test_the_first_admin_is_made_on_the_server(tmp_path, monkeypatch, capsys):
    import io
    import sys

    from app import admin

    def call(*line, typed=""):
        monkeypatch.setattr(sys, "argv", ["app.admin", *line, "--data", str(tmp_path)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        admin.main()
        return capsys.readouterr().out

    assert "may log in, as admin" in call("create", "root", typed=f"{PASSWORD}\n")
    with pytest.raises(SystemExit) as ended:
        call("create", "root", typed=f"{PASSWORD}\n")
    assert ended.value.code == 2
    assert "already" in capsys.readouterr().err
    site = Site(tmp_path)
    assert log_in(site.client(), "root").status_code == 303
    token = call("token", "root").strip()
    program = site.client(headers={"Authorization": f"Bearer {token}"})
    assert program.get("/audit").status_code == 200
    call("password", "root", typed="a longer password\n")
    assert log_in(site.client(), "root", "a longer password").status_code == 303
