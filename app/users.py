"""Users: passwords, sessions, tokens, and the audit log.

Passwords are argon2id hashes. Cookies and tokens are random, and stored as SHA-256 alone. What a
page must send along (CSRF) is derived from the cookie, which no other site can read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import timedelta

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import func, or_, update
from sqlmodel import Session, col, select

from app.store import ROLES, Audit, Login, Token, User, now

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
SHORTEST = 12  # characters of a password
LONGEST = 1024
SOLO = "solo"  # the one user of a server without login

# Failed logins within WINDOW, after which more are refused: of one name from one address, and in
# all of a name or from an address. So nobody locks a colleague out from elsewhere by five guesses.
WINDOW = timedelta(minutes=15)
MOST_FAILED = 5
MOST_IN_ALL = 50

_hasher = PasswordHasher()  # argon2id, parameters of RFC 9106 for little memory
_nobody = ""


class Refusal(ValueError):
    """A user, password or login that is refused; the message says why."""


def add_user(session: Session, name: str, password: str, role: str) -> User:
    """A new user; Refusal for a name that is taken or odd, a weak password, an unknown role."""
    if not NAME.fullmatch(name):
        raise Refusal("a name has 1 to 64 letters, digits or . _ @ -")
    if role not in ROLES:
        raise Refusal(f"no role '{role}'; roles are {', '.join(ROLES)}.")
    if session.exec(select(User).where(col(User.name) == name)).first():
        raise Refusal(f"there is a user '{name}' already.")
    user = User(name=name, password=hash_of(password), role=role)
    session.add(user)
    session.flush()
    return user


def by_name(session: Session, name: str) -> User:
    """The user of a name; Refusal where there is none."""
    user = session.exec(select(User).where(col(User.name) == name)).first()
    if user is None:
        raise Refusal(f"there is no user '{name}'.")
    return user


def hash_of(password: str) -> str:
    """The argon2id hash of a password; Refusal for one that is too short or too long."""
    if len(password) < SHORTEST:
        raise Refusal(f"a password has at least {SHORTEST} characters.")
    if len(password) > LONGEST:
        raise Refusal(f"a password has at most {LONGEST} characters.")
    return _hasher.hash(password)


def fits(password: str, hashed: str) -> bool:
    """Whether a password is the one of a hash; as slow where there is no hash."""
    global _nobody
    if not hashed:
        _nobody = _nobody or _hasher.hash(secrets.token_hex())
    try:
        return _hasher.verify(hashed or _nobody, password[:LONGEST]) and bool(hashed)
    except (VerificationError, InvalidHashError):
        return False


def log_in(session: Session, name: str, password: str, address: str, hours: float) -> str:
    """What the cookie of a new session holds; Refusal where name and password do not fit.

    After too many failures within 15 minutes every login of that name, or from that address, is
    refused, the right one too.
    """
    name = name[:64]
    if _too_many(session, name, address):
        audit(session, name, "login held back", "", address)
        session.commit()
        raise Refusal("too many failed logins; wait 15 minutes.")
    user = session.exec(select(User).where(col(User.name) == name)).first()
    usable = user is not None and user.active
    if not fits(password, user.password if user and usable else ""):
        audit(session, name, "login failed", "", address)
        session.commit()
        raise Refusal("name and password do not fit.")
    assert user
    cookie = new_login(session, user, address, hours)
    audit(session, name, "login", "", address)
    session.commit()
    return cookie


def _too_many(session: Session, name: str, address: str) -> bool:
    since = now() - WINDOW
    recent = select(Audit.who, Audit.address).where(
        col(Audit.action) == "login failed",
        col(Audit.created) > since,
        or_(col(Audit.who) == name, col(Audit.address) == address),
    )
    rows = list(session.exec(recent))
    both = sum(row == (name, address) for row in rows)
    return both >= MOST_FAILED or len(rows) >= MOST_IN_ALL


def new_login(session: Session, user: User, address: str, hours: float) -> str:
    """A new session of a user; gives what its cookie holds."""
    assert user.id is not None
    cookie = secrets.token_urlsafe(32)
    expires = now() + timedelta(hours=hours)
    session.add(Login(id=digest(cookie), user_id=user.id, expires=expires, address=address))
    return cookie


def user_of_cookie(session: Session, cookie: str) -> User | None:
    """The user of a session that is neither expired nor revoked."""
    login = session.get(Login, digest(cookie))
    if login is None or login.revoked or login.expires < now():
        return None
    user = session.get(User, login.user_id)
    return user if user and user.active else None


def user_of_token(session: Session, token: str) -> User | None:
    """The user of a token that is neither expired nor revoked."""
    found = session.exec(select(Token).where(col(Token.digest) == digest(token))).first()
    if found is None or found.revoked or (found.expires and found.expires < now()):
        return None
    user = session.get(User, found.user_id)
    return user if user and user.active else None


def new_token(session: Session, user: User, name: str, days: float | None = None) -> str:
    """A new token of a user for a program; it is shown once, and stored as its digest."""
    assert user.id is not None
    token = f"norma_{secrets.token_urlsafe(32)}"
    expires = now() + timedelta(days=days) if days else None
    session.add(Token(user_id=user.id, name=name, digest=digest(token), expires=expires))
    return token


def revoke_all(session: Session, user: User) -> None:
    """End all sessions of a user."""
    over = update(Login).where(col(Login.user_id) == user.id, col(Login.revoked).is_(None))
    session.execute(over.values(revoked=now()))


def revoke(session: Session, cookie: str) -> None:
    """End one session."""
    session.execute(update(Login).where(col(Login.id) == digest(cookie)).values(revoked=now()))


def last_admin(session: Session, user: User) -> bool:
    """Whether a user is the only active admin: without one nobody could let others in."""
    admins = (
        select(func.count())
        .select_from(User)
        .where(col(User.role) == "admin", col(User.active), col(User.id) != user.id)
    )
    return user.role == "admin" and session.exec(admins).one() == 0


def solo_user(session: Session) -> User:
    """The one user of a server without login, who may do everything."""
    user = session.exec(select(User).where(col(User.name) == SOLO)).first()
    if user is None:
        user = User(name=SOLO, role="admin")
        session.add(user)
        session.flush()
    return user


def audit(session: Session, who: str, action: str, about: str = "", address: str = "") -> None:
    """Add a line to the audit log."""
    session.add(Audit(who=who, action=action, about=about, address=address))


def digest(text: str) -> str:
    """SHA-256 of a cookie or token: what is stored of it."""
    return hashlib.sha256(text.encode()).hexdigest()


def csrf_of(cookie: str) -> str:
    """What a page of a session sends along with every change."""
    return hmac.digest(cookie.encode(), b"csrf", "sha256").hex()


def may(user: User, role: str) -> bool:
    """Whether a user has a role or a higher one."""
    ranks = [str(known) for known in ROLES]
    return ranks.index(user.role) >= ranks.index(role)


def may_cancel(user: User, uploader_id: int | None) -> bool:
    """Whether a user may cancel a study: the own one, or as a reviewer any."""
    return uploader_id == user.id or may(user, "reviewer")


def same(one: str, other: str) -> bool:
    """Whether two secrets are the same, in a time that tells nothing."""
    return hmac.compare_digest(one.encode(), other.encode())
