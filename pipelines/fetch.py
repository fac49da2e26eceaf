"""`make fetch`: bring what Norma does not ship: a ready-made run, or a public data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines import cli
from preprocessing.scans import InputError


def main(arguments: argparse.Namespace) -> int:
    if arguments.dataset:
        return _dataset(arguments)
    if not arguments.ready:
        raise InputError("give DATASET=<name> OUT=<folder>, or READY=<name> of a ready-made run.")
    from pipelines.detect.ready import fetch

    folder = fetch(arguments.ready, arguments.address, arguments.digest)
    print(f"{folder}: score scans with 'make infer RUN={arguments.ready} IN=<scan> OUT=<folder>'")
    return cli.OK


def _dataset(arguments: argparse.Namespace) -> int:
    from pipelines.cohort.fetch import described, fetch_dataset, next_step
    from pipelines.cohort.public import known_dataset

    name = arguments.dataset
    known = known_dataset(name)
    print(described(name, known), flush=True)
    if known.files and arguments.accept_licence:
        if not arguments.out:
            raise InputError(f"{name}: give OUT=<folder> for its files.")
        cli.writable_folder(arguments.out)
    out = Path(arguments.out or ".")
    here, failed = fetch_dataset(name, known, out, arguments.accept_licence)
    done = f"{out}: {here} files of {name}, {len(failed)} could not be fetched."
    print(done + next_step(name, str(out)))
    return cli.exit_code(len(failed), here + len(failed))


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "fetch",
        "Bring a public data set, or a ready-made run from an address; a broken download goes on.",
    )
    p.add_argument("--dataset", help="a public data set, by its name in configs/dataset")
    p.add_argument("--out", help="folder for the data set")
    p.add_argument(
        "--accept-licence",
        action="store_true",
        help="you have read the data set's licence and terms, and accept them",
    )
    p.add_argument("--ready", help="a ready-made run; 'make infer RUN=<name>' then finds it")
    p.add_argument("--address", help="of its zip archive; remembered in configs/ready/<name>.yaml")
    p.add_argument("--digest", help="SHA-256 of the archive")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
