"""`make fetch`: bring what Norma does not ship, from an address, checked by digest."""

from __future__ import annotations

import argparse

from pipelines import cli


def main(arguments: argparse.Namespace) -> int:
    from pipelines.detect.ready import fetch

    folder = fetch(arguments.ready, arguments.address, arguments.digest)
    print(f"{folder}: score scans with 'make infer RUN={arguments.ready} IN=<scan> OUT=<folder>'")
    return cli.OK


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser("fetch", "Bring a ready-made run from an address; a broken download goes on.")
    p.add_argument("--ready", required=True, help="its name; 'make infer RUN=<name>' then finds it")
    p.add_argument("--address", help="of its zip archive; remembered in configs/ready/<name>.yaml")
    p.add_argument("--digest", help="SHA-256 of the archive")
    return p


if __name__ == "__main__":
    cli.run(main, build_parser())
