"""What an admin does on the server itself: `python -m app.admin create`, and others."""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path

from sqlmodel import Session

from app import exports, users
from app.settings import Settings, SettingsError, add_arguments, settings_of, site_secret
from app.store import ROLES, StoreError, open_current


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.admin", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create", help="a new user; the first one is an admin")
    create.add_argument("name")
    create.add_argument("--role", choices=ROLES, default="admin")
    password = verbs.add_parser("password", help="a new password for a user; all sessions end")
    password.add_argument("name")
    token = verbs.add_parser("token", help="a new token of a user, for a program")
    token.add_argument("name")
    token.add_argument("--days", type=float, default=365)
    export = verbs.add_parser("export", help="opinions, datalists, scans and masks into a folder")
    export.add_argument("--out", type=Path, required=True)
    for one in (create, password, token, export):
        add_arguments(one)
    return parser


def main() -> None:
    """Exit code 2 where something is refused."""
    arguments = build_parser().parse_args()
    settings = settings_of(arguments)
    try:
        VERBS[arguments.verb](arguments, settings)
    except (users.Refusal, SettingsError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def store_of(settings: Settings) -> Session:
    """A session on the data base, whose tables are brought up to date."""
    site_secret(settings.data)
    return Session(open_current(settings.address))


def ask_password() -> str:
    """A password typed twice, or the first line of stdin where nobody types."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("password: ")
    if getpass.getpass("once more: ") != password:
        raise users.Refusal("the two passwords differ.")
    return password


def create(arguments: argparse.Namespace, settings: Settings) -> None:
    with store_of(settings) as session:
        users.add_user(session, arguments.name, ask_password(), arguments.role)
        users.audit(session, "server", f"new {arguments.role}", arguments.name)
        session.commit()
    print(f"{arguments.name} may log in, as {arguments.role}.")


def new_password(arguments: argparse.Namespace, settings: Settings) -> None:
    with store_of(settings) as session:
        user = users.by_name(session, arguments.name)
        user.password = users.hash_of(ask_password())
        session.add(user)
        users.revoke_all(session, user)
        users.audit(session, "server", "password", user.name)
        session.commit()
    print(f"{arguments.name} has a new password.")


def token(arguments: argparse.Namespace, settings: Settings) -> None:
    with store_of(settings) as session:
        made = users.new_token(
            session, users.by_name(session, arguments.name), "server", arguments.days
        )
        users.audit(session, "server", "token", arguments.name)
        session.commit()
    print(made)


def export(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.out.exists():
        raise users.Refusal(f"{arguments.out} is there already; give another folder.")
    engine = open_current(settings.address)
    counts = exports.export(engine, settings.data, arguments.out)
    for modality, count in counts.items():
        print(f"{arguments.out / f'datalist_{modality}.json'}: {count} scans")
    print(f"{arguments.out / 'opinions.tsv'}, {arguments.out / 'truth.tsv'}")


VERBS = {"create": create, "password": new_password, "token": token, "export": export}


if __name__ == "__main__":
    main()
