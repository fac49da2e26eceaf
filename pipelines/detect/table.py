"""The table of `make infer` in the terminal: a row per scan, as each is scored."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from pipelines.detect.report import Report
from preprocessing.scans import Scan

HEADS = ("score", "percentile", "findings", "flags", "seconds", "largest finding")
WIDTHS = (10, 10, 8, 5, 7, 0)
LONGEST = 40  # characters of a name


class Table:
    """Rows on stdout, above a progress bar on stderr that may be running."""

    def __init__(self, scans: Sequence[Scan]) -> None:
        self.width = min(LONGEST, max((len(scan.id) for scan in scans), default=4))
        self.begun = False

    def say(self, report: Report) -> None:
        """Print a report as a row."""
        with tqdm.external_write_mode(file=sys.stdout):
            if not self.begun:
                print(self._line("scan", HEADS))
                self.begun = True
            print(self._line(report.id, cells_of(report)), flush=True)

    def _line(self, name: str, cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True)]
        return "  ".join([name[:LONGEST].ljust(self.width), *padded]).rstrip()


def cells_of(report: Report) -> tuple[str, ...]:
    """A report as the cells under HEADS; "stood" for one that an earlier command made."""
    if not report.scored:
        return ("not scored", *[""] * (len(HEADS) - 1))
    took = "stood" if report.seconds is None else f"{report.seconds:.1f}"
    return (
        f"{report.score:.4g}",
        f"{report.percentile:.0f}",
        str(report.n_components),
        str(len(report.flags)),
        took,
        report.largest.summary if report.largest else "-",
    )
