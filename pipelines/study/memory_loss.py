"""What a memory of rejected findings costs in sensitivity.

Lesions are planted in healthy scans: half of them anywhere, half where the memory is, as there a
lesion is most easily taken for what was rejected. A lesion is found where MIN_OVERLAP of it is
marked. Of what the run finds without any memory a share may be lost with it: a small one of the
lesions anywhere, and MOST_NEAR of those where the memory is, which must not be blind there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta
from tqdm import tqdm

from evaluation import shapes, synthetic
from evaluation.lesions import MIN_OVERLAP
from pipelines.cohort.cases import Case, load, read_cases
from pipelines.detect.detector import cut
from pipelines.detect.memory import Entry, Memory, recall
from pipelines.detect.run import Run
from pipelines.study.evaluate import cases_for
from pipelines.study.plant import MARGIN_MM
from preprocessing.prepare import Prepared
from preprocessing.resample import carry_mask
from preprocessing.scans import InputError
from preprocessing.warp import inverse

KINDS = ("bright", "dark", "deform", "noise", "swap")  # those that need no donor
VOLUMES_ML = (0.5, 20.0)
FEWEST_FOUND = 20  # lesions; of fewer a loss of one in twenty cannot be seen
MOST_NEAR = 0.5


@dataclass(frozen=True)
class Loss:
    """Of planted lesions: how many the run finds, and how many of these a memory takes away.

    Those planted anywhere, and `*_near` those planted where the memory is.
    """

    planted: int
    found: int
    lost: int
    found_near: int
    lost_near: int

    @property
    def share(self) -> float:
        """Of the lesions found; 0 where none is."""
        return self.lost / max(self.found, 1)

    @property
    def most(self) -> float:
        """What the share is at most, with 95 % confidence (Clopper and Pearson 1934)."""
        if self.lost >= self.found:
            return 1.0
        return float(beta.ppf(0.95, self.lost + 1, self.found - self.lost))

    @property
    def text(self) -> str:
        """In a sentence."""
        return (
            f"of {self.planted} lesions planted anywhere {self.found} are found without memory, "
            f"and {self.lost} of these are lost with it ({self.share:.1%}; at most "
            f"{self.most:.1%} with 95 % confidence); of {self.found_near} found where the memory "
            f"is {self.lost_near} are lost"
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def unseen_healthy(run: Run, data: Path) -> list[Case]:
    """Healthy cases to measure the loss on: not trained on, and not the test scans.

    Those are kept for figures that are reported; the run's own splits say which they are where it
    has some. InputError where there is no case, or the cohort was preprocessed in another way.
    """
    splits = {case.id: case.split for case in cases_for(run, data)}
    if len(run.recipe.suffixes) > 1:
        raise InputError(
            f"{run.folder}: its scans have several channels, and a lesion is planted in one image; "
            "make a memory for a run on one."
        )
    learned = set(run.history.get("digests", []))
    validated = set(run.history.get("val_scans", []))
    cases = [
        case
        for case in read_cases(data)
        if case.label == "healthy" and not case.is_part
        if splits.get(case.id, case.split) != "test"
        if case.digest not in learned or case.id in validated
    ]
    if not cases:
        raise InputError(
            f"{data / 'scans.tsv'}: no healthy scan to measure the loss of sensitivity on; it "
            f"takes scans outside split 'test' that {run.folder} has not been trained on."
        )
    return cases


def measure_loss(
    run: Run, memory: Memory, cases: Sequence[Case], lesions: int, seed: int = 0
) -> Loss:
    """How many planted lesions a memory takes away, of those that the run finds without any."""
    at = run.point()
    config = run.config.postprocess
    planted_anywhere = 0
    counts = np.zeros((2, 2), int)  # near or not; found, lost
    with tqdm(total=lesions, desc="planted lesions", unit="lesion") as bar:
        for prepared, lesion, near in planted(cases, memory, lesions, seed):
            native = run.detector.map(prepared)
            truth = carry_mask(
                lesion, prepared.grid, prepared.home, inverse(prepared.scan_from_atlas)
            )
            before = covered(cut(native, at, config), truth)
            after, _ = recall(memory, native, at, config, prepared.scan_from_atlas)
            planted_anywhere += not near
            counts[int(near)] += (before, before and not covered(after, truth))
            bar.update()
    anywhere, close = counts.tolist()
    return Loss(planted_anywhere, *anywhere, *close)


def covered(marked: np.ndarray, truth: np.ndarray) -> bool:
    """Whether MIN_OVERLAP of a lesion is marked."""
    return bool(truth.any() and marked[truth].mean() >= MIN_OVERLAP)


def planted(
    cases: Sequence[Case], memory: Memory, lesions: int, seed: int
) -> Iterator[tuple[Prepared, np.ndarray, bool]]:
    """Scans with one lesion each, the lesion (bool, in the atlas), and whether it is near an entry.

    Cases take turns, every second lesion lies near a drawn entry, and kinds change after each pair.
    """
    for first, case in enumerate(cases):
        numbers = range(first, lesions, len(cases))
        if not numbers:
            return
        prepared = load(case)
        brain = prepared.brain
        spacing = prepared.grid.spacing
        for number in numbers:
            rng = np.random.default_rng([seed, number])
            ml = drawn_ml(rng, float(brain.sum() * np.prod(spacing)) / 1000)
            turn, near = divmod(number // len(cases) + first, 2)
            voxel = shapes.place(rng, brain, spacing, ml, MARGIN_MM)
            if near and memory.entries:
                voxel = place_near(memory.entries[rng.integers(len(memory.entries))], prepared)
            shape = shapes.random_shape(rng, brain.shape, spacing, voxel, ml)
            image, lesion = synthetic.plant(
                rng, KINDS[turn % len(KINDS)], prepared.channels[0], brain, shape, spacing
            )
            yield replace(prepared, image=image), lesion, bool(near)


def drawn_ml(rng: np.random.Generator, brain_ml: float) -> float:
    """A volume within VOLUMES_ML, log-uniform; of a small brain (a picture) a tenth at most."""
    largest = min(VOLUMES_ML[1], brain_ml / 10)
    smallest = min(VOLUMES_ML[0], largest / 10)
    return float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))


def place_near(entry: Entry, prepared: Prepared) -> tuple[int, int, int]:
    """The voxel of the brain that lies nearest to an entry's place."""
    voxels = np.argwhere(prepared.brain)
    affine = prepared.grid.affine
    apart = voxels @ affine[:3, :3].T + affine[:3, 3] - np.array(entry.place_mm)
    x, y, z = voxels[np.argmin((apart**2).sum(1))].tolist()
    return x, y, z


def demand_small(loss: Loss, most_lost: float) -> None:
    """InputError where a memory loses too much, or that cannot be told."""
    if loss.found < FEWEST_FOUND:
        raise InputError(
            f"the run finds {loss.found} of {loss.planted} lesions planted anywhere, and a loss is "
            f"measured on {FEWEST_FOUND} at least; plant more with ARGS=--lesions=. Nothing was "
            "written."
        )
    if loss.share > most_lost:
        raise InputError(
            f"refused: {loss.text}; at most {most_lost:.1%} may be lost (ARGS=--most-lost=). "
            "Nothing was written."
        )
    if loss.lost_near > MOST_NEAR * loss.found_near:
        raise InputError(
            f"refused: {loss.text}; there at most {MOST_NEAR:.0%} may be lost, or the run would be "
            "blind where readers rejected findings. Learn from fewer. Nothing was written."
        )
