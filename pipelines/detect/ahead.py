"""Scans are prepared by a process of their own, while this one loads torch and scores others.

A thread would have to wait: ANTs keeps Python's lock as long as it fits. This process has nothing
to do before the first scan is there. So it finds that one's brain, as it has torch, and other
poses of it while it is fitted. For scans that follow the other process does all of that.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from pipelines import cli
from pipelines.config import read_recipe
from pipelines.detect.folder import demand_finished
from preprocessing.recipe import Recipe
from preprocessing.scans import InputError, Scan, ScanError

if TYPE_CHECKING:
    import numpy as np

    from preprocessing.orientation import Coarse, Rival, Shape
    from preprocessing.prepare import Prepared

Order = tuple[Scan, Recipe, Path]  # a scan, how it is prepared, and where norma.log is
FIRST = 5.0  # seconds in which the process that prepares has come as far as a brain


@dataclass(frozen=True)
class Question:
    """What the process that prepares scans has the other one do meanwhile."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def answer(self) -> Answer:
        """What the function gives or raises here."""
        try:
            return Answer(self.function(*self.arguments))
        except Exception as error:
            return Answer(_sendable(error))


@dataclass(frozen=True)
class Answer:
    """What a function gave, or the exception that it raised."""

    value: Any


class Ahead:
    """A process that prepares scans in the order in which they are begun.

    What it logs is logged here, once its results are asked for. It ends with this process.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Order] = {}
        self._done: dict[str, tuple[Prepared | Exception, float]] = {}
        self._start()

    def _start(self) -> None:
        here, there = get_context("spawn").Pipe()
        self._connection = here
        self._process = get_context("spawn").Process(target=_work, args=(there,), daemon=True)
        self._process.start()
        there.close()  # so that its end is seen here

    def begin(self, scan: Scan, recipe: Recipe, out: Path) -> None:
        """Have a scan prepared, unless it is already; `out` is the folder of norma.log."""
        if scan.id not in self._waiting and scan.id not in self._done:
            self._waiting[scan.id] = (scan, recipe, out)
            self._send(self._waiting[scan.id])

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # the process has ended: `result` sees that, and sends again
            self._connection.send(message)

    def result(self, scan: Scan, recipe: Recipe, out: Path) -> tuple[Prepared, float]:
        """What `prepare` made of a scan, and the seconds that it took.

        Raises what `prepare` raised, and ScanError where the process ended at this scan.
        """
        self.begin(scan, recipe, out)
        while scan.id not in self._done:
            try:
                self._take(self._connection.recv())
            except (EOFError, OSError):
                self._begin_again()
        answer, seconds = self._done.pop(scan.id)
        if isinstance(answer, Exception):
            raise answer
        return answer, seconds

    def find_first_brain(self) -> None:
        """Answer what deepbet is asked for the scan that was begun.

        Whoever calls this as soon as torch is there has the brain before all else is loaded: that
        is when memory is needed most. A scan that is stripped already says so, and asks nothing.
        """
        if not any(_may_ask(recipe) for _, recipe, _ in self._waiting.values()):
            return
        with suppress(EOFError, OSError):  # the process has ended: `result` sees that
            if self._connection.poll(FIRST):
                self._take(self._connection.recv())

    def _take(self, message: Any) -> None:
        if isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
            return
        if isinstance(message, Question):
            self._send(message.answer())
            return
        name, answer, seconds = message
        del self._waiting[name]
        self._done[name] = (answer, seconds)

    def _begin_again(self) -> None:
        """After the process ended: the scan that it had is given up, the others are sent again."""
        name = next(iter(self._waiting))
        image = self._waiting.pop(name)[0].image
        why = f"{image}: the process that prepared it ended (out of memory?)."
        self._done[name] = (ScanError(why), 0.0)
        self.close()
        self._start()
        for order in self._waiting.values():
            self._send(order)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.kill()
        self._process.join()


def _may_ask(recipe: Recipe) -> bool:
    """Whether deepbet may be asked for a scan of a recipe."""
    has_brain = recipe.modality not in ("picture", "chest_ct")
    return has_brain and recipe.brain in ("auto", "deepbet")


def may_be_done(scan: Scan, out: Path, overwrite: bool) -> bool:
    """Whether a report of that name stands in a folder and counts: it is looked at first."""
    return not overwrite and (out / f"{scan.id}_report.json").is_file()


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: fewer in a SLURM job or a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def preparing_ahead(wanted: bool = True) -> Iterator[Ahead | None]:
    """An `Ahead` where it is wanted and saves time.

    There is none on one core, nor where torch is loaded already: what the new process loads would
    take longer than it saves.
    """
    if not wanted or "torch" in sys.modules or cores() == 1:
        yield None
        return
    with closing(Ahead()) as ahead:
        yield ahead


def begin_one_scan(ahead: Ahead, run_dir: Path, source: Path, out: Path, overwrite: bool) -> None:
    """Have an input that is one volume prepared for a run, unless its report stands in `out`.

    Scans of folders and tables are begun later, when all else has been looked at.
    """
    from preprocessing.folders import is_volume  # slow to load, while the process begins
    from preprocessing.tables import list_scans

    demand_finished(run_dir)
    if not is_volume(source):
        return
    cli.writable_folder(out)
    recipe = read_recipe(run_dir)
    for scan in list_scans(source, recipe.name, out)[0]:
        if not may_be_done(scan, out, overwrite):
            ahead.begin(scan, recipe, out)


class _Sent(QueueHandler):
    """Sends log records through a connection."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(SimpleQueue())
        self._connection = connection

    def enqueue(self, record: logging.LogRecord) -> None:
        self._connection.send(record)


def _work(connection: Connection) -> None:
    """Prepare what comes through a connection, until its other end is closed."""
    gc.set_threshold(cli.MANY_OBJECTS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began this one
    logging.basicConfig(level=logging.WARNING, handlers=[_Sent(connection)], format="%(message)s")
    logging.getLogger("norma").setLevel(logging.INFO)
    logging.captureWarnings(True)

    # beside this process the other one works, and torch's threads wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from preprocessing import brain, orientation
    from preprocessing.prepare import prepare  # slow to load, before the first scan is there

    logging.getLogger("nibabel.global").handlers.clear()  # it writes to stderr by itself
    other = _Other(connection)
    brain.FINDERS["deepbet"] = other.deepbet
    orientation.begin_rivals = other.begin_rivals
    with suppress(EOFError, OSError):
        while True:
            scan, recipe, out = other.next_order()
            cli.divert_libraries(out / cli.LOG)
            started = time.perf_counter()
            answer: Prepared | Exception
            try:
                answer = prepare(scan, recipe)
            except Exception as error:
                answer = _sendable(error)
            connection.send((scan.id, answer, time.perf_counter() - started))
            del answer  # 100 MB that nobody needs here while the next scan is waited for
            # from now on the other process scores
            brain.FINDERS["deepbet"] = brain.deepbet
            orientation.begin_rivals = orientation.rivals_later


class _Other:
    """The process at the other end, which has torch and nothing to do before the first scan.

    It answers questions in the order in which they are put.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._orders: deque[Order] = deque()
        self._unanswered = 0

    def next_order(self) -> Order:
        """The next scan to prepare; answers that nobody waited for are thrown away."""
        while self._unanswered:
            self._answer()
        order: Order = self._orders.popleft() if self._orders else self._connection.recv()
        self._recipe = order[1]
        return order

    def deepbet(self, data: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """The brain that deepbet finds there; ANTs and the atlas are loaded here meanwhile."""
        from preprocessing.by_deepbet import deepbet
        from preprocessing.orientation import coarse_atlas
        from preprocessing.register import ants, load_atlas

        self._ask(deepbet, data, affine)
        ants()
        with suppress(InputError):  # which comes again where the atlas is used
            coarse_atlas(load_atlas(self._recipe.template, self._recipe.grid))
        return self._answered()

    def begin_rivals(
        self, template: str | None, shape: Shape, scan: Coarse
    ) -> Callable[[], list[Rival]]:
        """Have other poses looked for there, and give a call that waits for them."""
        from preprocessing.orientation import rivals_in

        self._ask(rivals_in, template, shape, scan)
        return self._answered

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._connection.send(Question(function, arguments))
        self._unanswered += 1

    def _answered(self) -> Any:
        value = self._answer().value
        if isinstance(value, Exception):
            raise value
        return value

    def _answer(self) -> Answer:
        """The answer to the oldest question; orders that come before it are put aside."""
        while not isinstance(message := self._connection.recv(), Answer):
            self._orders.append(message)
        self._unanswered -= 1
        return message


def _sendable(error: Exception) -> Exception:
    """An exception with its traceback as a note, or its text where it cannot be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
