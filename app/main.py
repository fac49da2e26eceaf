"""The server of the review app: `make serve`, or `python -m app.main`.

Pages (HTML)
    GET  /                         list of studies [?state= modality= flagged=yes|no search= sort=
                                    date|score|percentile|volume|flags|status|modality|study
                                    order=asc|desc page=]
    GET  /studies/{id}              one study; `<div id="viewer">` and its data as JSON in
                                    `<script type="application/json" id="viewer-data">`
    GET  /studies/{id}/report       its report on one page; report.pdf where the server has pango
    GET  /account /users /audit     own account; users and the audit log for an admin
    GET  /login    POST /login /logout

Viewer data (JSON block): study, report (as report.json), result, run_digest, urls {scan, map, mask,
    reconstruction, reference, report, first, opinions, corrections; null where there is none},
    csrf, user.

API (JSON; `/openapi.json`)
    GET  /api/studies               a page of the list        POST: upload, a form with `file`s
    GET  /api/queue  /api/runs
    GET  /api/studies/{id}          one study                 POST …/start {modality, run}, …/cancel
                                                              …/remove, by an admin
    GET  /api/studies/{id}/scan.nii.gz  map.nii.gz  mask.nii.gz  reconstruction.nii.gz
    GET  /api/studies/{id}/report.json  reference.json  first.png [?result=<id of an older result>]
    GET  /api/studies/{id}/opinions                           POST {kind, value, component, comment,
                                                              threshold, seconds}
    POST /api/studies/{id}/corrections                        a form with `file`, threshold, seconds
    GET  /api/corrections/{opinion}.nii.gz
    GET  /api/export/opinions.tsv  /api/export/all.zip        for a reviewer
    GET  /info/   POST /infer/{model}                         as MONAI Label's clients call them

Every change needs the header `X-CSRF-Token` (in pages: `<meta name="csrf-token">`), or a token of
the user in `Authorization: Bearer`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from sqlmodel import Session, select
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import norma
from app import api, exports, jobs, monailabel, pages, report
from app.inbox import Inbox
from app.security import AddHeaders, visitor_or_none
from app.settings import (
    MB,
    REPORT_FIELDS,
    Settings,
    SettingsError,
    add_arguments,
    make_folder,
    settings_of,
    site_secret,
)
from app.store import StoreError, User, open_current
from app.workers import Workers

STATIC = Path(__file__).parent / "static"
AT_ONCE = 2  # files that are unpacked at the same time
FOLDERS = ("incoming", "scans", "results", "corrections")


def create_app(settings: Settings) -> FastAPI:
    """The app of some settings; its tables are brought up to date."""
    settings.check()
    for name in FOLDERS:
        make_folder(settings.data / name)
    settings.data.chmod(0o700)
    engine = open_current(settings.address)
    jobs.sweep(engine, settings.data)

    app = FastAPI(
        title="Norma",
        version=norma.__version__,
        description=norma.NOTICE,
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.engine = engine
    app.state.secret = site_secret(settings.data)
    app.state.intake = asyncio.Semaphore(AT_ONCE)
    for module in (exports, api, monailabel, report, pages):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(HTTPException, on_http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, on_invalid)  # type: ignore[arg-type]
    app.add_middleware(AddHeaders, settings=settings)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Workers and the look into the inbox live as long as the server."""
    settings: Settings = app.state.settings
    helpers: list[Workers | Inbox] = []
    if settings.workers:
        helpers.append(Workers(settings))
    if settings.inbox:
        helpers.append(Inbox(settings, app.state.engine, app.state.secret))
    for helper in helpers:
        helper.start()
    yield
    for helper in helpers:
        await asyncio.to_thread(helper.stop)


def is_page(request: Request) -> bool:
    """Whether a browser asks for a page, and not a program or a script for data."""
    path = request.url.path
    data = path.startswith(("/api/", "/infer/", "/info/", "/static/"))
    return not data and "text/html" in request.headers.get("Accept", "")


async def on_http_error(request: Request, error: HTTPException) -> Response:
    """A sentence: on a page for a browser, as JSON for a program; the login for nobody."""
    if not is_page(request):
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    if error.status_code == 401:
        way = request.url.path
        if request.url.query:
            way += f"?{request.url.query}"
        return RedirectResponse(f"/login?next={quote(way, safe='')}", 303)
    visitor = await asyncio.to_thread(visitor_or_none, request)
    unknown = error.status_code == 404 and error.detail == "Not Found"  # Starlette's own word
    reason = "There is no such page." if unknown else str(error.detail)
    return pages.page(request, "error.html", visitor, error.status_code, reason=reason)


async def on_invalid(request: Request, error: RequestValidationError) -> Response:
    """What is wrong with a request, without repeating what it held."""
    if is_page(request) and any("study_id" in one["loc"] for one in error.errors()):
        return await on_http_error(request, HTTPException(404, "There is no such study."))
    said = []
    for one in error.errors():
        where = ".".join(str(part) for part in one["loc"][1:])
        said.append(f"{where or one['loc'][0]}: {one['msg']}")
    text = "; ".join(said).encode("utf-8", "replace").decode()
    return await on_http_error(request, HTTPException(422, text))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.main", description=norma.NOTICE)
    add_arguments(parser)
    add = parser.add_argument
    add("--host", default=Settings.host, help="address to bind; other than loopback needs TLS")
    add("--port", type=int, default=Settings.port)
    add("--solo", action="store_true", help="one user, no login, on this machine alone")
    add("--behind-proxy", action="store_true", help="a proxy does TLS and sets X-Forwarded-*")
    add("--certificate", type=Path, help="PEM file, for TLS")
    add("--key", type=Path, help="PEM file of the certificate's key")
    add("--hosts", nargs="+", default=(), help="names under which browsers may ask")
    add("--inbox", type=Path, help="a folder that is looked at for new scans")
    add("--workers", type=int, default=Settings.workers, help="worker processes; 0 for none here")
    add("--max-upload-mb", type=int, default=Settings.max_upload // MB, help="of one file")
    add("--session-hours", type=float, default=Settings.session_hours)
    add(
        "--report-fields",
        nargs="+",
        choices=REPORT_FIELDS,
        default=Settings.report_fields,
        help="what a report says of the patient; name and birth are lines to fill in",
    )
    return parser


def check_free(settings: Settings) -> None:
    """SettingsError where the server could not listen, before it starts any worker."""
    try:
        known = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, *_, place = known[0]
        socket.create_server(place[:2], family=family).close()
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]
        raise SettingsError(
            f"HOST={settings.host} PORT={settings.port} cannot be listened on ({why}); "
            f"give another one, such as PORT={settings.port + 1}."
        ) from None


def has_users(app: FastAPI) -> bool:
    """Whether anybody can log in."""
    with Session(app.state.engine) as session:
        return session.exec(select(User.id).limit(1)).first() is not None


def main() -> None:
    """Serve until the process is told to end; exit code 2 for settings it does not start with."""
    arguments = build_parser().parse_args()
    arguments.max_upload = arguments.max_upload_mb * MB
    arguments.hosts = tuple(arguments.hosts)
    arguments.report_fields = tuple(arguments.report_fields)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in ("alembic", "weasyprint", "fontTools"):  # they tell every step
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        settings = settings_of(arguments)
        settings.check()
        check_free(settings)
        app = create_app(settings)
    except (SettingsError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    scheme = "https" if settings.certificate else "http"
    if not settings.solo and not has_users(app):
        print("nobody can log in yet; make the first admin: python -m app.admin create NAME")
    print(f"Norma: {scheme}://{settings.host}:{settings.port}", flush=True)
    print(norma.NOTICE, flush=True)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        proxy_headers=settings.behind_proxy,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        server_header=False,
        log_level="warning",
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
