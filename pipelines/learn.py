"""`make learn`: a run that no longer marks what readers have rejected, as a child run."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli
from preprocessing.scans import InputError


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.ready import run_folder
    from pipelines.detect.run import load_run
    from pipelines.study.learn import (
        accepted_results,
        demand_free,
        remembering,
        remembering_run,
        without,
    )
    from pipelines.study.memory_loss import demand_small, measure_loss, unseen_healthy
    from pipelines.study.protocol import existing_data
    from pipelines.study.rejected import CONFIRMED, beside, read_opinions
    from preprocessing.files import write_table

    run = load_run(run_folder(arguments.run), arguments.accelerator)
    out = Path(arguments.out)
    if arguments.undo is not None:
        child = remembering_run(run, without(run, arguments.undo), out)
        left = len(child.memory.entries) if child.memory else 0
        print(f"{out}: without entry {arguments.undo}; its memory holds {left} entries")
        return cli.OK
    if not (arguments.input and arguments.data):
        raise InputError("give IN= the opinions and DATA= a preprocessed cohort, or UNDO=<entry>.")
    demand_free(run, out)  # before minutes of planting
    cli.demand_writable(out)
    seed = cli.seed_of(arguments.seed)
    if not 0 <= arguments.most_lost < 1:
        raise InputError(f"--most-lost {arguments.most_lost}: expected a share from 0 to below 1.")

    said = read_opinions(Path(arguments.input), accepted_results(run))
    for reason, count in said.left_out.items():
        print(f"left out: {count} {reason}")
    memory, repeated = remembering(run, said.rejected)
    if repeated:
        print(f"left out: {repeated} that the run remembers already")
    new = len(said.rejected) - repeated
    if not new:
        raise InputError(f"{arguments.input}: no rejected finding that the run can learn from.")
    cases = unseen_healthy(run, existing_data(Path(arguments.data)))
    loss = measure_loss(run, memory, cases, arguments.lesions, seed)
    demand_small(loss, arguments.most_lost)

    memory = memory.model_copy(update={"loss": loss.as_json()})
    remembering_run(run, memory, out)
    if said.confirmed:
        write_table(out / "confirmed.tsv", beside(said.confirmed, out), CONFIRMED)
        print(f"{out / 'confirmed.tsv'}: {len(said.confirmed)} scans for split 'tune' alone")
    print(f"{out}: {new} rejected findings learned, {len(memory.entries)} in all; {loss.text}")
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("learn", "Damp findings that are like those that readers have rejected.")
    p.add_argument("--run", required=True, help="run folder of train, or a ready-made run's name")
    p.add_argument(
        "--input", help="export folder of the review app, or a table of rejected findings"
    )
    p.add_argument("--data", help="preprocessed cohort; the loss is measured in its healthy scans")
    p.add_argument("--out", required=True, help="folder of the new run, which names its parent")
    p.add_argument("--undo", type=int, metavar="ENTRY", help="a run without this entry instead")
    p.add_argument(
        "--most-lost",
        type=float,
        default=0.05,
        help="share of the lesions found anywhere that may be lost (default 0.05)",
    )
    p.add_argument("--lesions", type=int, default=100, help="lesions to plant (default 100)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--accelerator", "--device", default="auto", choices=["auto", "cpu", "cuda"])
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
