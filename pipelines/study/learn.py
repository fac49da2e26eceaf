"""A child run that remembers what readers have rejected, or no longer does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.detect.batch import result_digest
from pipelines.detect.folder import MEMORY, demand_place, read_history
from pipelines.detect.memory import MOST, Entry, Memory, write_memory
from pipelines.detect.run import Run
from pipelines.training.calibrate import begin_child, finish_child, parent_of
from preprocessing.scans import InputError


def remembering(run: Run, rejected: Sequence[Entry]) -> tuple[Memory, int]:
    """A run's memory with more entries, and how many of them it had already.

    An entry is another where study or place differ. InputError beyond MOST entries.
    """
    before = run.memory or Memory()
    known = {(entry.study, tuple(entry.place_mm)) for entry in before.entries}
    entries = list(before.entries)
    number = before.next
    for entry in rejected:
        key = (entry.study, tuple(entry.place_mm))
        if key not in known:
            known.add(key)
            entries.append(entry.model_copy(update={"number": number}))
            number += 1
    if len(entries) > MOST:
        raise InputError(
            f"{run.folder}: its memory would hold {len(entries)} rejected findings, and holds "
            f"{MOST} at most; undo some (UNDO=), or train or calibrate the run anew."
        )
    repeated = len(before.entries) + len(rejected) - len(entries)
    return Memory(next=number, results=accepted_results(run), entries=entries), repeated


def accepted_results(run: Run) -> list[str]:
    """Digests of results that a run may learn from: its own, and those of its memory's parents.

    At whichever of its points it marked: map values are the same.
    """
    earlier = run.memory.results if run.memory else []
    known = [point for point in run.points.values() if not point.refused]
    return sorted({*earlier, *[result_digest(run, point) for point in known]})


def without(run: Run, number: int) -> Memory:
    """A run's memory without an entry; InputError where it has none of that number."""
    entries = run.memory.entries if run.memory else []
    if number not in [entry.number for entry in entries]:
        known = ", ".join(str(entry.number) for entry in entries) or "none"
        raise InputError(f"{run.folder}: no entry {number} in its memory; it has: {known}.")
    assert run.memory
    kept = [entry for entry in entries if entry.number != number]
    # damping by fewer entries is never more, so the loss that was measured bounds this one too
    return run.memory.model_copy(update={"entries": kept, "results": accepted_results(run)})


def demand_free(run: Run, out: Path) -> None:
    """InputError where `out` holds another run, such as a child that was calibrated anew."""
    before = read_history(out)
    same = before.get("parent") == parent_of(run)
    calibrated = before.get("calibrated_on") == run.history.get("calibrated_on")
    demand_place(out, run.folder, same and calibrated)


def remembering_run(run: Run, memory: Memory, out: Path) -> Run:
    """A run with the network and thresholds of another and a memory, in the folder `out`.

    Its run.json names the parent. A memory without entries is none. InputError as `demand_free`.
    """
    demand_free(run, out)
    begin_child(run, [], out, {})
    (out / MEMORY).unlink(missing_ok=True)  # the parent's
    if memory.entries:
        write_memory(memory, out)
    return finish_child(run, run.detector, out)
