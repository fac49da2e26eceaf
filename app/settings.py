"""What an admin sets: where data lie, who may connect, how large a file may be."""

from __future__ import annotations

import argparse
import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")  # as a browser names this machine

MB = 2**20

# Of a patient: the site's label and the pseudonym, or an empty line to fill in by hand: the app
# knows neither names nor dates of birth.
REPORT_FIELDS = ("label", "subject", "name", "birth")


class SettingsError(ValueError):
    """Settings that the app does not start with; the message says why."""


@dataclass(frozen=True)
class Settings:
    """All settings of a server and its workers.

    data: the folder of scans, results, corrections and, on SQLite, the data base.
    database: an SQLAlchemy address; "" is SQLite in `data`.
    solo: one user, no login, loopback alone.
    hosts: names under which browsers may ask, besides those of this machine.
    inbox: a folder that is looked at for new scans.
    runs: a folder of runs that are offered beside the ready-made ones.
    point: the operating point by its name; None is the run's own.
    max_upload: bytes of one file that comes in. max_gb: of a scan as float32.
    session_hours: how long a login lasts.
    report_fields: what a report says of the patient, of REPORT_FIELDS.
    """

    data: Path = Path("work/app")
    database: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    solo: bool = False
    behind_proxy: bool = False
    certificate: Path | None = None
    key: Path | None = None
    hosts: tuple[str, ...] = ()
    inbox: Path | None = None
    runs: Path | None = None
    point: str | None = None
    workers: int = 1
    max_upload: int = 2048 * MB
    max_gb: float = 1.0
    session_hours: float = 12.0
    report_fields: tuple[str, ...] = ("label", "subject")

    @property
    def address(self) -> str:
        """The data base as SQLAlchemy is told it."""
        return self.database or f"sqlite:///{self.data.resolve() / 'norma.db'}"

    @property
    def secure(self) -> bool:
        """Whether browsers reach the app by TLS: cookies go over nothing else then."""
        return self.certificate is not None or self.behind_proxy

    @property
    def allowed_hosts(self) -> list[str]:
        """Names that a request may carry: another one is a page that was tricked onto this app."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        own = [] if self.host in ("0.0.0.0", "::") else [host]
        return [*dict.fromkeys([*LOOPBACK, *own, *self.hosts])]

    def check(self) -> None:
        """Raise SettingsError for settings that would open the app to a network unprotected."""
        if self.solo and not is_loopback(self.host):
            raise SettingsError(
                f"SOLO=1 has no login, so it opens on this machine alone, not on {self.host}; "
                "leave HOST out, or SOLO."
            )
        if self.solo and self.behind_proxy:
            raise SettingsError(
                "SOLO=1 has no login: a proxy would open it to others; leave one out."
            )
        if not is_loopback(self.host) and not self.secure:
            raise SettingsError(
                f"HOST={self.host} opens the app to a network, where passwords need TLS; give "
                "--certificate and --key, or --behind-proxy where a proxy does TLS."
            )
        if bool(self.certificate) != bool(self.key):
            raise SettingsError("--certificate and --key go together; give both.")
        self._check_values()

    def _check_values(self) -> None:
        """Raise SettingsError for folders and files that are not there, and odd numbers."""
        for name, folder in (("INBOX", self.inbox), ("RUNS", self.runs)):
            if folder and not folder.is_dir():
                raise SettingsError(f"{name}={folder} is no folder; make it, or leave {name} out.")
        for name, path in (("--certificate", self.certificate), ("--key", self.key)):
            if path and not Path(path).is_file():
                raise SettingsError(f"{name} {path} is no file; give a PEM file.")
        if not 0 < self.port < 65536:
            raise SettingsError(f"PORT={self.port}: expected a number from 1 to 65535.")
        if self.workers < 0:
            raise SettingsError(f"WORKERS={self.workers}: expected 0 or more.")
        if min(self.max_upload, self.max_gb, self.session_hours) <= 0:
            raise SettingsError("--max-upload-mb, --max-gb and --session-hours are above 0.")


FIELDS = frozenset(Settings.__dataclass_fields__)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def make_folder(folder: Path) -> None:
    """Make a folder of the app's data; SettingsError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"DATA: the folder {folder} cannot be made ({error.strerror}); give another one."
        ) from None


def site_secret(data: Path) -> bytes:
    """The secret of a site, made once: pseudonyms depend on it."""
    path = data / "secret"
    make_folder(data)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
    return path.read_bytes()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that server, worker and admin share."""
    add = parser.add_argument
    add("--data", type=Path, default=Settings.data, help="folder of scans, results, opinions")
    add("--database", default="", help="postgresql+psycopg://…; without it SQLite in --data")
    add("--runs", type=Path, help="a folder of runs, offered beside the ready-made ones")
    add("--point", help="operating point, such as finding=0.05; without it the run's own")
    add("--max-gb", type=float, default=Settings.max_gb, help="of a scan as float32")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that a command line gives."""
    known = {name: value for name, value in vars(arguments).items() if name in FIELDS}
    return Settings(**known)


def shared_arguments(settings: Settings) -> list[str]:
    """The command line that gives a worker the settings of its server."""
    line = ["--data", str(settings.data), "--max-gb", str(settings.max_gb)]
    for name in ("database", "runs", "point"):
        value = getattr(settings, name)
        if value:
            line += [f"--{name}", str(value)]
    return line
