"""What every command shares: exit codes, one-sentence errors, stderr, the log file, the lock."""

from __future__ import annotations

import argparse
import atexit
import errno
import fcntl
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

from pipelines.config import ConfigError
from preprocessing.files import remove_left_behind
from preprocessing.scans import InputError, ScanError

OK = 0
SOME_FAILED = 1
USAGE = 2
NOTHING_DONE = 3
INTERRUPTED = 130
TERMINATED = 143

ADVICE = {
    errno.ENOSPC: "; free some space and run again",
    errno.EACCES: "; choose a folder you may write to",
}
NO_SCANS_FAULT = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
# New objects between two looks for garbage. Python's 700 make it look hundreds of times while torch
# and MONAI are loaded, which takes a sixth of that time.
MANY_OBJECTS = 100_000
LOG = "norma.log"
LOCK = ".norma.lock"

log = logging.getLogger("norma")
_claimed: dict[Path, IO[str]] = {}
_stderr: list[int] = []  # a copy of descriptor 2 as the command found it, while it is elsewhere


class Terminated(KeyboardInterrupt):
    """SIGTERM, as SLURM and Docker send it: ends a command as Ctrl-C does."""


class LineHandler(logging.StreamHandler):
    """Writes each message on a line of its own, above a progress bar that may be running."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def run(main: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> None:
    """Parse, run, and leave with the exit code.

    0 all ok, 1 some scans failed, 2 usage or config, 3 nothing could be processed, 130 interrupted,
    143 terminated. A user's mistake is one sentence on stderr, never a traceback.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()
    leave(partial(main, arguments), arguments.debug)


def leave(main: Callable[[], int | None], debug: bool = False) -> NoReturn:
    """Call `main` and leave with its exit code, None being 0, or that of what ended it; see `run`.

    `debug`: a user's mistake has a traceback too.
    """
    gc.set_threshold(MANY_OBJECTS)
    atexit.register(gc.freeze)  # else Python ends by looking through all objects, for a second
    _log_to_stderr()
    _bear_any_name()
    before = signal.signal(signal.SIGTERM, _terminate)

    try:
        code = main() or OK
    except Terminated:
        code = TERMINATED
        print("\nterminated; what was finished is kept, run it again to go on.", file=sys.stderr)
    except KeyboardInterrupt:
        code = INTERRUPTED
        print(
            "\ninterrupted; what was finished is kept, run the same command again to go on.",
            file=sys.stderr,
        )
    except (ValueError, OSError) as error:
        if debug or not is_user_error(error):
            raise
        print(f"error: {error_sentence(error)}", file=sys.stderr)
        code = USAGE
    finally:
        signal.signal(signal.SIGTERM, before)
        release()

    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _bear_any_name() -> None:
    """A file name that is no UTF-8 is shown with its odd bytes escaped, and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _log_to_stderr() -> None:
    """Norma's messages on stderr, and nobody else's: those go to the log file."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    handler = LineHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(logging.Filter("norma"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO)


def log_to(folder: Path) -> None:
    """What Norma and the packages below it say goes to `folder`/norma.log too, in this process."""
    root = logging.getLogger()
    path = folder / LOG
    wanted = os.path.abspath(path)
    files = [h for h in root.handlers if isinstance(h, logging.FileHandler)]
    if any(handler.baseFilename == wanted for handler in files):
        return
    for handler in files:
        root.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(path, delay=True, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(name)s: %(message)s"))
    root.addHandler(handler)
    logging.captureWarnings(True)
    logging.getLogger("nibabel.global").handlers.clear()  # it writes to stderr by itself
    divert_libraries(path)


def divert_libraries(path: Path) -> None:
    """What C++ libraries print on descriptor 2 goes to a file; Python's stderr stays where it was.

    ITK, which fits scans, and decoders of pictures write there past Python's logging.
    """
    try:
        on_two = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # a stream of a test or of a notebook
        on_two = False
    if on_two:
        sys.stderr.flush()
        _stderr.append(os.dup(2))
        own = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setStream(own)
        sys.stderr = own
    if not _stderr:
        return
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 2)
    os.close(file)


def log_traceback(error: BaseException, folder: Path) -> None:
    """The traceback of an error that one scan met, to the log file alone."""
    log_to(folder)
    text = "".join(traceback.format_exception(error))
    logging.getLogger("traceback").error(text)


def is_user_error(error: Exception) -> bool:
    """Whether an exception is a message to the user.

    It is one about a config, a table or a scan that cannot be used, or a disk that refuses.
    """
    return isinstance(error, (ConfigError, InputError, ScanError, OSError))


def ends_the_command(error: BaseException, out: Path) -> bool:
    """Whether an error is no scan's fault: the disk is full, or `out` cannot be written."""
    if not isinstance(error, OSError):
        return False
    if error.errno in NO_SCANS_FAULT:
        return True
    about = Path(str(error.filename)) if error.filename else None
    denied = error.errno in (errno.EACCES, errno.EPERM)
    return denied and about is not None and about.is_relative_to(out)


def unexpected(error: BaseException, image: Path) -> str:
    """Why a scan failed, for an error that is no sentence of Norma's own."""
    if isinstance(error, PermissionError):
        return f"{image}: it may not be read; ask its owner for the right to."
    if isinstance(error, OSError) and error.strerror:
        return f"{image}: {error_sentence(error)}"
    return f"{image}: unexpected {type(error).__name__}: {error_sentence(error)}"


def exit_code(failed: int, total: int) -> int:
    """0 where all went well, 1 where some of `total` scans failed, 3 where all did."""
    if failed == total:
        return NOTHING_DONE
    return SOME_FAILED if failed else OK


def error_sentence(error: BaseException) -> str:
    """One line for an exception; an error of the operating system names its file."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        advice = ADVICE.get(error.errno or 0, "")
        return f"{name}{error.strerror}{advice}."
    return " ".join(str(error).split()) or type(error).__name__


def writable_folder(path: str | Path) -> Path:
    """Make a folder, claim it for this command, and check that a file can be written in it.

    OSError names the folder; InputError says that another command works there. What a killed
    command left half written is removed.
    """
    folder = Path(path)
    make_folder(folder)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # processes of one training share a folder
        claim(folder)
        remove_left_behind(folder)
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder, and check that a file can be written in it; OSError names the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _probe(folder)


def demand_writable(path: Path) -> None:
    """OSError where a folder cannot be made or written; unlike `writable_folder` makes nothing."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    try:
        _probe(there)
    except OSError as error:
        error.filename = str(path)
        raise


def _probe(folder: Path) -> None:
    """Write a file in a folder and remove it."""
    probe = folder / f".tmp-write-{os.getpid()}"
    probe.touch()
    probe.unlink()


def claim(folder: Path) -> None:
    """Hold a folder until the command ends; InputError where another command holds it."""
    folder = folder.resolve()
    if folder in _claimed:
        return
    handle = open(folder / LOCK, "a", encoding="utf-8")  # noqa: SIM115 (held until `release`)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise InputError(
            f"{folder}: another command works in this folder; wait for it, or give another OUT."
        ) from None
    except OSError as error:  # a file system without locks
        log.info("%s: cannot be locked (%s); run one command at a time in it.", folder, error)
    _claimed[folder] = handle


def release() -> None:
    """Let go of every folder that this process holds, and of its log file."""
    for handle in _claimed.values():
        handle.close()
    _claimed.clear()
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()
    if _stderr:
        os.dup2(_stderr[-1], 2)


def seed_of(seed: int) -> int:
    """The seed that a user gives; InputError for one that no random numbers can be drawn from."""
    if seed < 0:
        raise InputError(f"--seed: {seed}; expected 0 or a larger whole number.")
    return seed


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser that says how the command is called."""
    return argparse.ArgumentParser(prog=f"python -m pipelines.{command}", description=description)
