"""A worker: takes studies from the queue, one after the other. `python -m app.worker`."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

import norma
from app import jobs
from app.detect import detect
from app.jobs import Detect, Job
from app.settings import Settings, add_arguments, settings_of
from app.store import StoreError, open_current
from app.studies import scan_path

IDLE = 1.0  # seconds between two looks into an empty queue
LONGEST = 3600.0  # seconds of one study; a scan takes minutes
PARENT = "NORMA_APP_SERVER"  # the process without which a worker is not wanted any more

log = logging.getLogger("norma.app")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m app.worker", description=__doc__)
    add_arguments(parser)
    settings = settings_of(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _leave)
    try:
        engine = open_current(settings.address)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    work(engine, settings, partial(detect, settings=settings))


def _leave(number: int, frame: object) -> None:
    raise SystemExit(143)


def work(engine: Engine, settings: Settings, detect: Detect, most: int | None = None) -> None:
    """Compute what waits in the queue, until the server ends or `most` studies are through."""
    worker = jobs.worker_name()
    count = 0
    while not _orphaned() and (most is None or count < most):
        job = jobs.claim(engine, worker)
        if job is None:
            time.sleep(IDLE)
            continue
        compute(engine, settings.data, job, detect)
        count += 1


def _orphaned() -> bool:
    """Whether the server that started this worker is gone."""
    server = os.environ.get(PARENT)
    return server is not None and os.getppid() != int(server)


def compute(
    engine: Engine,
    data: Path,
    job: Job,
    detect: Detect,
    lost: Callable[[], None] = lambda: os._exit(0),
) -> None:
    """Score one study and commit its result, or why there is none.

    `lost` is called from a second thread when the study is taken away (cancelled, say): a
    computation is ended by ending its process, and the server starts another one.
    """
    folder = jobs.new_folder(data)
    over = threading.Event()
    pulse = threading.Thread(target=_pulse, args=(engine, job, over, lost), daemon=True)
    pulse.start()
    say = partial(jobs.beat, engine, job)
    kept = False
    try:
        scored = detect(scan_path(data, job.study_id), job, folder, say)
        jobs.finish(engine, job, scored, folder)
        kept = True
    except (norma.ScanError, norma.InputError) as error:
        reason = str(error).replace(str(scan_path(data, job.study_id)), "the scan")
        jobs.end(engine, job, "refused", reason)
    except jobs.Lost:
        log.info("%s: taken away while it was computed", job.study_id)
    except Exception as error:
        log.exception("%s: failed", job.study_id)
        sentence = " ".join(str(error).split())[:300]
        jobs.end(engine, job, "failed", f"unexpected {type(error).__name__}: {sentence}")
    except (KeyboardInterrupt, SystemExit):
        jobs.hand_back(engine, job)
        raise
    finally:
        over.set()
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _pulse(engine: Engine, job: Job, over: threading.Event, lost: Callable[[], None]) -> None:
    """Signs of life from a second thread, while the first one computes."""
    begin = time.monotonic()
    while not over.wait(jobs.BEAT):
        if time.monotonic() - begin > LONGEST:
            jobs.end(engine, job, "failed", f"it took more than {LONGEST / 60:.0f} minutes.")
        try:
            jobs.beat(engine, job)
        except jobs.Lost:
            if not over.is_set():
                lost()
            return
        except Exception:  # a data base that is away for a moment: the lease bridges it
            log.exception("no sign of life could be given")


if __name__ == "__main__":
    main()
