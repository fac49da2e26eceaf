"""One function over many scans: here, on this machine's cores, on SLURM or on a Dask scheduler."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.config import ConfigError

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster
    from distributed import Client

T = TypeVar("T")
U = TypeVar("U")
log = logging.getLogger("norma")

# Scans that a scheduler knows of at a time: its memory does not grow with the cohort.
AHEAD = 1000
# Times that a scan may lose its worker before it is left out.
DEATHS = 2
# Seconds without any local worker process after which none is waited for.
PATIENCE = 60.0
# Seconds that a scheduler at an address has to answer.
ANSWER_S = 10.0
# Of one job, where dask's own jobqueue.slurm config says nothing.
SLURM = {"cores": 4, "processes": 4, "memory": "16GB"}
# Threads of a worker; ITK keeps to one, see preprocessing/register.py.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# A lost worker or scheduler is one sentence of Norma, not pages of these.
TALKATIVE = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio")


def each(
    function: Callable[[T], Any], items: Iterable[T], executor: str = "", workers: int = 1
) -> Iterator[tuple[T, Any, str]]:
    """(item, function(item), "") as they finish, or (item, None, reason) for an item left out.

    `executor` says where the work is done:

    - "": this process, or "local" for more than one worker;
    - "local": `workers` processes, which share the cores;
    - "slurm": up to `workers` jobs;
    - "tcp://host:port": the workers of that Dask scheduler, which must see the same files.

    A lost worker costs no other item: another worker takes up the one that it had. An item that
    loses its worker again and again is left out. An exception of `function` is tried once more,
    then raised. ConfigError where no scheduler answers or it goes away, and where all processes of
    this machine ended and no other can be started.
    """
    if executor or workers > 1:
        yield from _each_on_workers(function, iter(items), executor or "local", workers)
        return
    for item in items:
        yield item, function(item), ""


def _each_on_workers(
    function: Callable[[T], Any], waiting: Iterator[T], executor: str, workers: int
) -> Iterator[tuple[T, Any, str]]:
    from distributed import CancelledError, KilledWorker, as_completed
    from distributed.comm import CommClosedError

    folder = os.getcwd()
    running: dict[Any, T] = {}
    with _client(executor, workers) as client, _watched(client, executor, running) as alone:
        done = as_completed(raise_errors=False)

        def send(count: int) -> None:
            for item in islice(waiting, count):
                future = client.submit(_on_worker, function, item, folder, retries=1, pure=False)
                running[future] = item
                done.add(future)

        send(AHEAD)
        for future in done:
            # The item is done, but its worker went before it answered: another does it again.
            if future.status in ("pending", "lost"):
                done.add(future)
                continue

            try:
                outcome = future.result(), ""
            except KilledWorker:
                outcome = None, f"the worker process died {DEATHS + 1} times (out of memory?)."
            except (CancelledError, CommClosedError):
                what = "the scheduler went away"
                if alone.is_set():
                    what = "all worker processes ended, and no other starts (out of memory?)"
                raise ConfigError(
                    f"EXECUTOR={executor}: {what}; what was finished is kept, run the same command "
                    "again."
                ) from None
            # until here it can be cancelled: its worker may have gone before it answered
            item = running.pop(future)
            yield item, *outcome
            send(1)


@contextmanager
def _watched(client: Client, executor: str, running: dict[Any, Any]) -> Iterator[Event]:
    """Cancels what is `running` where no local process has been left for `PATIENCE`; then is set.

    Dask waits for ever where a process that ended cannot be started again. Workers of SLURM and of
    other schedulers may come late, and are waited for.
    """
    ended = Event()
    alone = Event()

    def watch() -> None:
        seen = time.monotonic()
        while not ended.wait(PATIENCE / 10):
            if client.scheduler_info(n_workers=-1)["workers"]:
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE:
                alone.set()
                client.cancel(list(running))
                return

    if executor == "local":
        Thread(target=watch, daemon=True).start()
    try:
        yield alone
    finally:
        ended.set()


def one_ahead(
    function: Callable[[T], Any], items: Iterable[T]
) -> Iterator[tuple[T, Callable[[], Any]]]:
    """Each item, with a call that waits for function(item).

    The function runs in a thread, one item ahead of the one that the caller works on. There torch
    keeps to one core: two threads that each have several make theirs wait for each other.
    """
    with ThreadPoolExecutor(1, initializer=_one_core) as thread:
        try:
            yield from begun_ahead(lambda item: thread.submit(function, item).result, items)
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def _one_core() -> None:
    """Torch, where it is loaded, has one core for what this thread asks; others keep theirs."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def begun_ahead(begin: Callable[[T], U], items: Iterable[T]) -> Iterator[tuple[T, U]]:
    """Each item with begin(item), called one item ahead of the one that the caller works on."""
    begun: deque[tuple[T, U]] = deque()
    for item in items:
        begun.append((item, begin(item)))
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun


def _on_worker(function: Callable[[T], Any], item: T, folder: str) -> Any:
    """Runs on a worker: a relative path means what it means in the process that sent the item."""
    _limit_threads()
    os.chdir(folder)
    return function(item)


@lru_cache(maxsize=1)
def _limit_threads() -> None:
    """Torch keeps to the threads that its worker was given, once it is loaded; it is slow to load.

    A worker whose scans need no network never loads it.
    """
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))


@contextmanager
def _client(executor: str, workers: int) -> Iterator[Client]:
    """A client of the executor's scheduler; a cluster of its own ends with it."""
    import dask
    from distributed import Client

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if executor not in ("local", "slurm"):
        with _connect(executor) as client:
            count = len(client.scheduler_info(n_workers=-1)["workers"])
            log.info("%d workers at %s", count, executor)
            yield client
        return

    make_cluster = _slurm_jobs if executor == "slurm" else _local_processes
    with (
        dask.config.set(_dask_settings(executor, workers)),
        make_cluster(workers) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _connect(address: str) -> Client:
    """A client of the Dask scheduler at an address; ConfigError where none answers."""
    from distributed import Client

    try:
        return Client(address, timeout=ANSWER_S)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"EXECUTOR={address}: no Dask scheduler answers there ({reason}); "
            "expected local, slurm or the address that 'dask scheduler' prints."
        ) from None


def _dask_settings(executor: str, workers: int) -> dict[str, Any]:
    """Dask's settings: how often an item may lose its worker, and each local worker's threads."""
    settings: dict[str, Any] = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.scheduler.worker-saturation": 1.0,
    }
    if executor == "local":
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        for name in THREADS:
            key = f"distributed.nanny.pre-spawn-environ.{name}"
            settings[key] = os.environ.get(name, threads)
    return settings


def _local_processes(workers: int) -> Any:
    """A Dask cluster of processes on this machine."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address=None,
        memory_limit=None,
        silence_logs=logging.CRITICAL,
    )


def _slurm_jobs(workers: int) -> Any:
    """A Dask cluster of up to `workers` SLURM jobs."""
    cluster = slurm_cluster()
    cluster.adapt(minimum_jobs=1, maximum_jobs=workers)
    log.info(
        "up to %d jobs go to SLURM; scans begin when it starts the first ('squeue' shows them).",
        workers,
    )
    return cluster


def slurm_cluster() -> SLURMCluster:
    """SLURM jobs as dask-jobqueue writes them from ~/.config/dask/jobqueue.yaml.

    `SLURM` fills in what that file leaves open.
    """
    import dask
    from dask_jobqueue import SLURMCluster

    defaults: dict[str, Any] = {}
    for key, value in SLURM.items():
        if dask.config.get(f"jobqueue.slurm.{key}", None) in (None, 1):
            defaults[key] = value
    return SLURMCluster(**defaults, scheduler_options={"dashboard_address": None})


def preview(executor: str, workers: int, count: int) -> str:
    """What --dry-run prints: how many scans go where and, for SLURM, the script of a job."""
    where = {"": "this process", "local": "this machine"}.get(executor, executor)
    units = "jobs" if executor == "slurm" else "processes"
    text = f"{count} scans, in up to {workers} {units} on {where}"
    if executor == "slurm":
        with slurm_cluster() as cluster:
            return f"{text}, each job:\n{cluster.job_script()}"
    return text


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got '{text}'")
    return int(text)


def add_arguments(p: argparse.ArgumentParser) -> None:
    """--executor, --workers and --dry-run, as preprocess and infer share them."""
    p.add_argument(
        "--executor",
        default="",
        metavar="local|slurm|ADDRESS",
        help="where scans are worked on, see docs/cluster.md",
    )
    p.add_argument(
        "--workers", type=_at_least_one, default=1, help="processes at a time, or SLURM jobs"
    )
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be done, with the SLURM script, and do nothing",
    )
