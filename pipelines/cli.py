"""What every command shares: exit codes, one-sentence errors, logging to stderr."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipelines.config import ConfigError
from preprocessing.scans import InputError, ScanError

OK = 0
SOME_FAILED = 1
USAGE = 2
NOTHING_DONE = 3
INTERRUPTED = 130

ADVICE = {
    errno.ENOSPC: "; free some space and run again",
    errno.EACCES: "; choose a folder you may write to",
}

log = logging.getLogger("norma")


class LineHandler(logging.StreamHandler):
    """Writes each message on a line of its own, above a progress bar that may be running."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def run(main: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> None:
    """Parse, run, and leave with the exit code.

    0 all ok, 1 some scans failed, 2 usage or config, 3 nothing could be processed, 130 interrupted.
    A user's mistake is one sentence on stderr, never a traceback.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()
    _log_to_stderr()

    try:
        code = main(arguments)
    except KeyboardInterrupt:
        print(
            "\ninterrupted; what was finished is kept, run the same command again to go on.",
            file=sys.stderr,
        )
        code = INTERRUPTED
    except (ValueError, OSError) as error:
        if arguments.debug or not is_user_error(error):
            raise
        print(f"error: {error_sentence(error)}", file=sys.stderr)
        code = USAGE

    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _log_to_stderr() -> None:
    """Norma's messages on stderr; of the packages below, warnings alone."""
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[LineHandler(sys.stderr)]
    )
    for package in ("matplotlib", "torch", "lightning", "fabric", "monai"):
        logging.getLogger(package).setLevel(logging.WARNING)


def is_user_error(error: Exception) -> bool:
    """Whether an exception is a message to the user.

    It is one about a config, a table or a scan that cannot be used, or a disk that refuses.
    """
    return isinstance(error, (ConfigError, InputError, ScanError, OSError))


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
    """Make a folder and check that a file can be written in it; OSError names the folder."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".tmp-write-{os.getpid()}"
    probe.touch()
    probe.unlink()
    return folder


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser that says how the command is called."""
    return argparse.ArgumentParser(prog=f"python -m pipelines.{command}", description=description)
