"""One function over many scans: in this process, on the cores of this machine, on SLURM, or on any Dask scheduler."""

from __future__ import annotations

import argparse
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.config import ConfigError

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster
    from distributed import Client

T = TypeVar("T")
log = logging.getLogger("norma")
AHEAD = 1000  # scans that a scheduler knows of at a time, so that its memory does not grow with the cohort
DEATHS = 2  # times that a scan may lose its worker before it is left out
SLURM = {
    "cores": 4,
    "processes": 4,
    "memory": "16GB",
}  # of one job, where dask's own jobqueue.slurm config says nothing


def each(
    function: Callable[[T], Any], items: Iterable[T], executor: str = "", workers: int = 1
) -> Iterator[tuple[T, Any, str]]:
    """(item, function(item), "") as they finish, or (item, None, reason) where the worker of an item died again and again.

    `executor`: "local", `workers` processes that share the cores; "slurm", up to `workers` jobs; "tcp://host:port", the workers of that
    Dask scheduler, which must see the same files. Empty: this process, or "local" for more than one worker. The worker of an item that is
    lost costs that item alone, which another takes up. An exception of `function` is tried once more, then raised. ConfigError where no
    scheduler answers or it goes away.
    """
    if not executor and workers <= 1:
        for item in items:
            yield item, function(item), ""
        return
    from distributed import CancelledError, KilledWorker, as_completed
    from distributed.comm import CommClosedError

    waiting, place = iter(items), os.getcwd()
    with _client(executor or "local", workers) as client:
        running: dict[Any, T] = {}
        done = as_completed(raise_errors=False)

        def send(count: int) -> None:
            for item in islice(waiting, count):
                future = client.submit(_there, function, item, place, retries=1, pure=False)
                running[future] = item
                done.add(future)

        send(AHEAD)
        for future in done:
            if future.status in (
                "pending",
                "lost",
            ):  # done, but its worker went before it could tell: another one does it again
                done.add(future)
                continue
            item = running.pop(future)
            try:
                result = future.result()
            except KilledWorker:
                yield item, None, f"the worker process died {DEATHS + 1} times (out of memory?)."
            except (CancelledError, CommClosedError):
                where = f"EXECUTOR={executor or 'local'}"
                raise ConfigError(
                    f"{where}: the scheduler went away; what was finished is kept, run the same command again."
                ) from None
            else:
                yield item, result, ""
            send(1)


def one_ahead(
    function: Callable[[T], Any], items: Iterable[T]
) -> Iterator[tuple[T, Callable[[], Any]]]:
    """Each item with a call that waits for function(item), which runs in a thread while the item before is worked on."""
    with ThreadPoolExecutor(1) as thread:
        begun: deque[tuple[T, Future[Any]]] = deque()
        try:
            for item in items:
                begun.append((item, thread.submit(function, item)))
                if len(begun) > 1:
                    before, future = begun.popleft()
                    yield before, future.result
            for item, future in begun:
                yield item, future.result
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def _there(function: Callable[[T], Any], item: T, place: str) -> Any:
    """Runs on a worker: relative paths mean there what they mean here."""
    _own_threads()
    os.chdir(place)
    return function(item)


@lru_cache(maxsize=1)
def _own_threads() -> None:
    """Torch keeps to the threads that its worker was given."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@contextmanager
def _client(executor: str, workers: int) -> Iterator[Client]:
    import dask
    from distributed import Client, LocalCluster

    # a lost worker or scheduler is told in a sentence of our own
    for talkative in (
        "distributed",
        "distributed.client",
        "tornado",
        "tornado.application",
        "asyncio",
    ):
        logging.getLogger(talkative).setLevel(logging.CRITICAL)
    if executor not in ("local", "slurm"):
        try:
            client = Client(executor, timeout=10)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"EXECUTOR={executor}: no Dask scheduler answers there ({' '.join(str(error).split())}); "
                "expected local, slurm or the address that 'dask scheduler' prints."
            ) from None
        with client:
            log.info(
                "%d workers at %s", len(client.scheduler_info(n_workers=-1)["workers"]), executor
            )
            yield client
        return
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
    )  # ITK keeps to one, see preprocessing/register.py
    settings: dict[str, Any] = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.scheduler.worker-saturation": 1.0,
    }
    if executor == "local":
        settings |= {
            f"distributed.nanny.pre-spawn-environ.{name}": os.environ.get(name, threads)
            for name in names
        }
    with dask.config.set(settings):
        if executor == "slurm":
            cluster: Any = slurm_cluster()
            cluster.adapt(minimum_jobs=1, maximum_jobs=workers)
            log.info(
                "up to %d jobs go to SLURM; scans begin when it starts the first ('squeue' shows them).",
                workers,
            )
        else:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address=None,
                memory_limit=None,
                silence_logs=logging.CRITICAL,
            )
        with cluster, Client(cluster) as client:
            yield client


def slurm_cluster() -> SLURMCluster:
    """SLURM jobs as dask-jobqueue writes them from ~/.config/dask/jobqueue.yaml, with `SLURM` where that says nothing."""
    import dask
    from dask_jobqueue import SLURMCluster

    own: dict[str, Any] = {
        key: value
        for key, value in SLURM.items()
        if dask.config.get(f"jobqueue.slurm.{key}", None) in (None, 1)
    }
    return SLURMCluster(**own, scheduler_options={"dashboard_address": None})


def preview(executor: str, workers: int, count: int) -> str:
    """What --dry-run prints: how many scans go where and, for SLURM, the script of a job."""
    where = {"": "this process", "local": "this machine"}.get(executor, executor)
    text = f"{count} scans, in up to {workers} {'jobs' if executor == 'slurm' else 'processes'} on {where}"
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
