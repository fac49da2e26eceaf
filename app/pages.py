"""The pages: login, the list of studies, one study with its viewer, users, the audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.templating import Jinja2Templates
from sqlmodel import col, select

import norma
from app import jobs, opinions, runs, studies, texts, users
from app.api import StudyId, StudyOut, database, study_or_404
from app.security import (
    COOKIE,
    Admin,
    Reader,
    Visitor,
    address_of,
    refuse_other_sites,
    set_cookie,
    visitor_or_none,
)
from app.store import ROLES, STATES, Audit, Login, Result, Study, Token, User

router = APIRouter(include_in_schema=False)
templates = Jinja2Templates(Path(__file__).parent / "templates")

Report = dict[str, Any]  # as norma writes it

SHOWN = 200  # lines of the audit log on a page


def page(
    request: Request, name: str, visitor: Visitor | None, status: int = 200, **values: Any
) -> HTMLResponse:
    """A page from its template; every one knows who looks, in which language, and the notice."""
    accepted = request.headers.get("Accept-Language", "")
    language = visitor.user.language if visitor else texts.preferred(accepted)
    shared = {
        "user": visitor.user if visitor else None,
        "csrf": visitor.csrf if visitor else "",
        "solo": request.app.state.settings.solo,
        "language": language,
        "t": lambda text: texts.translate(text, language),
        "num": lambda form, value: texts.number(form % value, language),
        "sentence": lambda text: texts.sentence(text, language),
        "place": lambda text: texts.place(text, language),
        "texts": texts.catalogue(language),
        "languages": texts.LANGUAGES,
        "notice": norma.NOTICE,
        "version": norma.__version__,
        "is_admin": visitor is not None and users.may(visitor.user, "admin"),
        "may_cancel": users.may_cancel,
        "is_reviewer": visitor is not None and users.may(visitor.user, "reviewer"),
    }
    return templates.TemplateResponse(request, name, shared | values, status_code=status)


@router.get("/login", response_class=HTMLResponse)
def login_page(
    request: Request,
    visitor: Annotated[Visitor | None, Depends(visitor_or_none)],
    next: str = "/",
) -> Response:
    """The login form; who is logged in goes on."""
    if visitor:
        return RedirectResponse(_own_path(next), 303)
    return page(request, "login.html", None, next=_own_path(next), error="")


def _own_path(path: str) -> str:
    """A path of this app: a link to the login must lead nowhere else."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if plain and path.isprintable() else "/"


@router.post("/login")
def log_in(
    request: Request,
    name: Annotated[str, Form(max_length=200)],
    password: Annotated[str, Form(max_length=2000)],
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Log in: a new session, or the form again with a sentence."""
    refuse_other_sites(request)
    settings = request.app.state.settings
    try:
        with database(request) as session:
            cookie = users.log_in(
                session,
                name.replace("\0", ""),
                password,
                address_of(request),
                settings.session_hours,
            )
    except users.Refusal as error:
        return page(request, "login.html", None, 401, next=_own_path(next), error=str(error))
    answer = RedirectResponse(_own_path(next), 303)
    set_cookie(answer, cookie, settings)
    return answer


@router.post("/logout")
def log_out(request: Request, visitor: Reader) -> Response:
    """End the session."""
    with database(request) as session:
        users.revoke(session, visitor.cookie)
        users.audit(session, visitor.user.name, "logout", "", visitor.address)
        session.commit()
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


@router.get("/", response_class=HTMLResponse)
def list_page(
    request: Request, visitor: Reader, wanted: Annotated[studies.Wanted, Query()]
) -> HTMLResponse:
    """The list of studies: filtered, searched, sorted, a page at a time."""
    chosen = runs.runs_of(request.app.state.settings)
    with database(request) as session:
        found, total = studies.list_studies(session, wanted)
        pages = max(1, -(-total // wanted.size))
        if wanted.page > pages:  # of a list that was longer
            wanted.page = pages
            found, total = studies.list_studies(session, wanted)
        counts = studies.count_states(session)
        forsaken = jobs.is_forsaken(session)

    def link(**changes: Any) -> str:
        kept = wanted.model_dump(exclude_defaults=True) | changes
        return f"/?{urlencode(kept)}"

    return page(
        request,
        "studies.html",
        visitor,
        studies=found,
        total=total,
        counts=counts,
        forsaken=forsaken,
        states=STATES,
        runs=chosen.values(),
        modalities=list(dict.fromkeys(c.modality for c in chosen.values())),
        query=wanted,
        link=link,
        most=request.app.state.settings.max_upload,
        pages=pages,
    )


@router.get("/studies/{study_id}", response_class=HTMLResponse)
def study_page(request: Request, visitor: Reader, study_id: StudyId) -> HTMLResponse:
    """One study: the viewer and its data, the findings, the opinions; or where it stands."""
    with database(request) as session:
        study = study_or_404(session, study_id)
        result = session.get(Result, study.result_id) if study.result_id else None
        said = opinions.history(session, study_id, visitor)
        newer, older = studies.neighbours(session, study)
    report = json.loads(result.report) if result else None
    return page(
        request,
        "study.html",
        visitor,
        study=study,
        result=result,
        report=report,
        data=viewer_data(study, result, report, visitor, request.app.state.settings.data),
        opinions=said,
        runs=runs.runs_of(request.app.state.settings).values(),
        newer=newer,
        older=older,
        peaks_rule=cuts_by_peak(report),
    )


def cuts_by_peak(report: Report | None) -> bool:
    """Whether the rule for components looks at their peaks, as far as a report shows it."""
    found = report.get("components", []) if report else []
    return all(one.get("strength") in (None, one["peak"]) for one in found)


def viewer_data(
    study: Study, result: Result | None, report: Report | None, visitor: Visitor, data: Path
) -> dict[str, Any]:
    """What the viewer's JSON block holds; an address is None where there is no such file."""
    root = f"/api/studies/{study.id}"
    urls: dict[str, str | None] = {
        "scan": f"{root}/scan.nii.gz" if studies.scan_path(data, study.id).is_file() else None,
        "opinions": f"{root}/opinions",
        "corrections": f"{root}/corrections",
        "map": None,
        "mask": None,
        "reconstruction": None,
        "reference": None,
        "report": None,
        "first": None,
    }
    if result:
        there = {path.name for path in studies.result_folder(data, result.id).glob("*")}
        files = {
            "map": "map.nii.gz",
            "mask": "mask.nii.gz",
            "reconstruction": "reconstruction.nii.gz",
            "reference": "reference.json",
            "first": "first.png",
        }
        urls |= {key: f"{root}/{file}" for key, file in files.items() if file in there}
        urls["report"] = f"{root}/report.json"
    return {
        "study": StudyOut.model_validate(study).model_dump(mode="json"),
        "report": report,
        "result": result.id if result else None,
        "run_digest": result.run_digest if result else None,
        "urls": urls,
        "csrf": visitor.csrf,
        "user": {"name": visitor.user.name, "role": visitor.user.role},
    }


@router.get("/account", response_class=HTMLResponse)
def account_page(request: Request, visitor: Reader) -> HTMLResponse:
    """The own account: password, sessions, tokens."""
    with database(request) as session:
        return _account(request, visitor, session)


def _account(request: Request, visitor: Visitor, session: Any, **values: Any) -> HTMLResponse:
    mine = visitor.user.id
    logins = session.exec(
        select(Login)
        .where(col(Login.user_id) == mine)
        .order_by(col(Login.created).desc())
        .limit(20)
    )
    tokens = session.exec(select(Token).where(col(Token.user_id) == mine).order_by(col(Token.id)))
    shown = {"logins": list(logins), "tokens": list(tokens), "now": users.now()}
    shown |= {"error": "", "token": ""} | values
    status = 422 if shown["error"] else 200
    return page(request, "account.html", visitor, status, **shown)


@router.post("/account/password")
def change_password(
    request: Request,
    visitor: Reader,
    old: Annotated[str, Form(max_length=2000)],
    new: Annotated[str, Form(max_length=2000)],
) -> Response:
    """Change the own password; all sessions end, so that nobody stays who should not."""
    with database(request) as session:
        user = session.get_one(User, visitor.user.id)
        try:
            if not users.fits(old, user.password):
                raise users.Refusal("the old password does not fit.")
            user.password = users.hash_of(new)
        except users.Refusal as error:
            users.audit(session, user.name, "password change failed", "", visitor.address)
            session.commit()
            return _account(request, visitor, session, error=str(error))
        session.add(user)
        users.revoke_all(session, user)
        users.audit(session, user.name, "password", user.name, visitor.address)
        session.commit()
    return RedirectResponse("/login", 303)


@router.post("/account/tokens")
def make_token(
    request: Request, visitor: Reader, name: Annotated[str, Form(min_length=1, max_length=64)]
) -> Response:
    """A new token for a program, shown this once."""
    with database(request) as session:
        user = session.get_one(User, visitor.user.id)
        token = users.new_token(session, user, name.replace("\0", ""), days=365)
        users.audit(session, user.name, "token", name.replace("\0", ""), visitor.address)
        session.commit()
        return _account(request, visitor, session, token=token)


@router.post("/account/tokens/{token_id}/revoke")
def revoke_token(request: Request, visitor: Reader, token_id: int) -> Response:
    """End a token of one's own."""
    with database(request) as session:
        token = session.get(Token, token_id)
        if token is None or token.user_id != visitor.user.id:
            raise HTTPException(404, "There is no such token.")
        token.revoked = token.revoked or users.now()
        session.add(token)
        users.audit(session, visitor.user.name, "token revoked", token.name, visitor.address)
        session.commit()
    return RedirectResponse("/account", 303)


@router.post("/account/language")
def set_language(
    request: Request, visitor: Reader, language: Annotated[str, Form(max_length=8)]
) -> Response:
    """The language of the own pages."""
    if language not in texts.LANGUAGES:
        raise HTTPException(422, "There is no such language.")
    with database(request) as session:
        user = session.get_one(User, visitor.user.id)
        user.language = language
        session.add(user)
        session.commit()
    return RedirectResponse("/account", 303)


@router.get("/users", response_class=HTMLResponse)
def users_page(request: Request, visitor: Admin) -> HTMLResponse:
    """All users, for an admin."""
    with database(request) as session:
        return _users(request, visitor, session)


def _users(request: Request, visitor: Visitor, session: Any, error: str = "") -> HTMLResponse:
    known = list(session.exec(select(User).order_by(col(User.name))))
    status = 422 if error else 200
    return page(request, "users.html", visitor, status, users=known, roles=ROLES, error=error)


@router.post("/users")
def add_user(
    request: Request,
    visitor: Admin,
    name: Annotated[str, Form(max_length=200)],
    password: Annotated[str, Form(max_length=2000)],
    role: Annotated[str, Form(max_length=20)],
) -> Response:
    """A new user, by an admin."""
    with database(request) as session:
        try:
            users.add_user(session, name, password, role)
        except users.Refusal as error:
            return _users(request, visitor, session, str(error))
        users.audit(session, visitor.user.name, f"new {role}", name, visitor.address)
        session.commit()
    return RedirectResponse("/users", 303)


@router.post("/users/{user_id}")
def change_user(
    request: Request,
    visitor: Admin,
    user_id: int,
    role: Annotated[str, Form(max_length=20)],
    active: Annotated[str, Form(max_length=3)] = "",
    password: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Another role or password of a user, or an end of the account; the sessions end too."""
    with database(request) as session:
        user = session.get(User, user_id)
        if user is None or role not in ROLES:
            raise HTTPException(404, "There is no such user or role.")
        stays = role == "admin" and active == "yes"
        try:
            if users.last_admin(session, user) and not stays:
                raise users.Refusal("this is the last admin; make another one first.")
            if password:
                user.password = users.hash_of(password)
        except users.Refusal as error:
            session.rollback()
            return _users(request, visitor, session, str(error))
        user.role = role
        user.active = active == "yes"
        session.add(user)
        users.revoke_all(session, user)
        said = f"{role}, {'active' if user.active else 'closed'}"
        users.audit(session, visitor.user.name, f"user is {said}", user.name, visitor.address)
        session.commit()
    return RedirectResponse("/users", 303)


@router.get("/audit", response_class=HTMLResponse)
def audit_page(
    request: Request, visitor: Admin, before: Annotated[int, Query(ge=0, le=2**62)] = 0
) -> HTMLResponse:
    """The audit log, newest first, for an admin."""
    query = select(Audit).order_by(col(Audit.id).desc()).limit(SHOWN)
    if before:
        query = query.where(col(Audit.id) < before)
    with database(request) as session:
        lines = list(session.exec(query))
    return page(request, "audit.html", visitor, lines=lines, more=len(lines) == SHOWN)
