"""Who asks, and whether they may: sessions, tokens, CSRF, and the headers of every answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request, Response
from sqlmodel import Session
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import users
from app.settings import Settings
from app.store import User

COOKIE = "norma_session"
HEADER = "X-CSRF-Token"
SAFE = ("GET", "HEAD", "OPTIONS")

# No inline script or style, no other host, no frame. The viewer makes images of blobs.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Visitor:
    """Who asks: a user, by the cookie of a session ("" for a token), from an address."""

    user: User
    cookie: str
    address: str

    @property
    def csrf(self) -> str:
        """What its pages send along with a change."""
        return users.csrf_of(self.cookie) if self.cookie else ""


def settings_of(request: Request) -> Settings:
    return request.app.state.settings


def address_of(request: Request) -> str:
    """Where a request comes from; behind a proxy that is what uvicorn made of its header."""
    return request.client.host if request.client else ""


def visitor_or_none(request: Request) -> Visitor | None:
    """Who asks, by a token, a session, or as the one user of a server without login."""
    address = address_of(request)
    cookie = request.cookies.get(COOKIE, "")
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    with Session(request.app.state.engine, expire_on_commit=False) as session:
        if kind.lower() == "bearer":
            user = users.user_of_token(session, token.strip())
            cookie = ""
        else:
            user = users.user_of_cookie(session, cookie) if cookie else None
        solo = settings_of(request).solo
        if user and user.name == users.SOLO and not solo:
            user = None  # of a time when this server had no login
        if user is None and solo and not token:
            return _solo(request, session, address)
        return Visitor(user, cookie, address) if user else None


def _solo(request: Request, session: Session, address: str) -> Visitor:
    """The solo user; a browser that asks for a page gets a session, a program needs none."""
    user = users.solo_user(session)
    cookie = ""
    if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
        cookie = users.new_login(session, user, address, settings_of(request).session_hours)
        request.state.new_cookie = cookie
    session.commit()
    return Visitor(user, cookie, address)


async def checked(
    request: Request, visitor: Annotated[Visitor | None, Depends(visitor_or_none)]
) -> Visitor:
    """Who asks, where the request is one of our own pages or of a program.

    401 for nobody; 403 for a change that another site asked a browser for.
    """
    if visitor is None:
        raise HTTPException(401, "Log in, or send a token.", {"WWW-Authenticate": "Bearer"})
    if request.method not in SAFE:
        refuse_other_sites(request)
        if visitor.cookie and not await _has_csrf(request, visitor):
            raise HTTPException(403, "This page is too old; load it again and repeat.")
    return visitor


def refuse_other_sites(request: Request) -> None:
    """403 where a browser says that another site made it ask."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    origin = request.headers.get("Origin")
    other = origin is not None and urlsplit(origin).netloc != request.headers.get("Host")
    if site not in ("none", "same-origin") or other:
        raise HTTPException(403, "Another site may not ask for this.")


async def _has_csrf(request: Request, visitor: Visitor) -> bool:
    """Whether a change carries the token of its page, in a header or in a plain form."""
    sent = request.headers.get(HEADER, "")
    kind = request.headers.get("Content-Type", "")
    if not sent and kind.startswith("application/x-www-form-urlencoded"):
        sent = str((await request.form()).get("csrf", ""))
    return users.same(sent, visitor.csrf)


def needs(role: str) -> Callable[[Visitor], Visitor]:
    """A dependency: the visitor, who has this role or a higher one."""

    def check(visitor: Annotated[Visitor, Depends(checked)]) -> Visitor:
        if not users.may(visitor.user, role):
            raise HTTPException(403, f"This needs the role '{role}'.")
        return visitor

    return check


Reader = Annotated[Visitor, Depends(needs("reader"))]
Reviewer = Annotated[Visitor, Depends(needs("reviewer"))]
Admin = Annotated[Visitor, Depends(needs("admin"))]


def set_cookie(response: Response, cookie: str, settings: Settings) -> None:
    """Give a browser the cookie of its session: for this site alone, and unseen by scripts."""
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=int(settings.session_hours * 3600),
        path="/",
        secure=settings.secure,
        httponly=True,
        samesite="strict",
    )


class AddHeaders:
    """The headers of every answer; pages and patients' data are not kept by caches.

    It touches the first message of an answer alone: a scan streams past it.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.add(MutableHeaders(scope=message), scope["path"], state.get("new_cookie"))
            await send(message)

        await self.app(scope, receive, send_more)

    def add(self, headers: MutableHeaders, path: str, cookie: str | None) -> None:
        """Add to the headers of one answer."""
        for name, value in HEADERS.items():
            headers.setdefault(name, value)
        if not path.startswith("/static/"):
            headers.setdefault("Cache-Control", "no-store")
        if self.settings.secure:
            headers["Strict-Transport-Security"] = "max-age=31536000"
        if cookie:
            carrier = Response()
            set_cookie(carrier, cookie, self.settings)
            headers.append("Set-Cookie", carrier.headers["Set-Cookie"])
