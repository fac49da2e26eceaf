"""Checks a scan must pass before anyone trusts its map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from preprocessing.scans import ScanError

LIKE = 0.1  # nats, of two MR sequences: 0.43 and 0.67 where they lie on each other, 0.06 where they are 5 mm apart


@dataclass(frozen=True)
class Check:
    """One measured value against its limits (either may be open); `hard` checks refuse the scan, others only flag it."""

    name: str
    value: float
    low: float = -np.inf
    high: float = np.inf
    unit: str = ""
    hard: bool = True

    @property
    def passed(self) -> bool:
        return bool(self.low <= self.value <= self.high)

    def sentence(self) -> str:
        return (
            f"{self.name} is {self.value:.4g} {self.unit}".rstrip() + f", expected {self.expected}"
        )

    @property
    def expected(self) -> str:
        if np.isinf(self.low):
            return f"at most {self.high:g} {self.unit}".rstrip()
        if np.isinf(self.high):
            return f"at least {self.low:g} {self.unit}".rstrip()
        return f"{self.low:g} to {self.high:g} {self.unit}".rstrip()

    def row(self) -> dict[str, Any]:
        row = {k: v for k, v in asdict(self).items() if k not in ("low", "high")}
        return {
            **row,
            "value": round(float(self.value), 4),
            "expected": self.expected,
            "passed": self.passed,
        }


def image_checks(data: np.ndarray, modality: str, extent_mm: Sequence[float]) -> list[Check]:
    """Before any work: finite voxels, a head-sized field of view and a plausible range of values.

    CT is expected in HU: air or padding below -15, brain or bone above 60 (pictures windowed to -20..100 HU pass).
    """
    checks = [
        Check(
            "share of voxels that are NaN or infinite", float(1 - np.isfinite(data).mean()), high=0
        )
    ]
    if not checks[0].passed:
        return checks
    checks.append(
        Check("smallest extent of the field of view", float(min(extent_mm)), low=60, unit="mm")
    )
    checks.append(
        Check(
            "largest extent of the field of view",
            float(max(extent_mm)),
            low=110,
            high=600,
            unit="mm",
        )
    )
    low, high = (float(v) for v in (data.min(), data.max()))
    if modality == "ct":
        checks += [
            Check("lowest value", low, low=-10000, high=20, unit="HU"),
            Check("highest value", high, low=40, high=40000, unit="HU"),
        ]
    checks.append(Check("spread of values (max - min)", high - low, low=1e-12))
    return checks


def picture_checks(data: np.ndarray, mask: np.ndarray) -> list[Check]:
    """A 2-D picture (X, Y, 1): finite pixels, some contrast, and a foreground that is not a speck."""
    return [
        Check(
            "share of pixels that are NaN or infinite", float(1 - np.isfinite(data).mean()), high=0
        ),
        Check("spread of values (max - min)", float(data.max() - data.min()), low=1e-6),
        Check("foreground (share of the picture)", float(mask.mean()), low=0.02),
    ]


def brain_checks(
    mask: np.ndarray, spacing: Sequence[float], volume_ml: tuple[float, float]
) -> list[Check]:
    """After skull stripping: brain volume, and how much of the mask lies on the border of the field of view."""
    volume = float(mask.sum() * np.prod(spacing) / 1000)
    faces = [np.take(mask, i, axis) for axis in range(3) for i in (0, -1)]
    worst = max(float(face.sum()) for face in faces) / max(float(mask.sum()) ** (2 / 3), 1)
    return [
        Check("brain volume", volume, *volume_ml, unit="ml"),
        Check("brain cut by the border of the scan (largest face / volume^2/3)", worst, high=0.9),
        Check("brain touches the border of the scan", worst, high=0.15, hard=False),
    ]


def registration_checks(
    rigid_dice: float,
    affine_dice: float,
    information: float,
    min_overlap: float,
    min_information: float,
) -> list[Check]:
    """After registration: overlap of the brain masks, and likeness to the atlas once size and shape are allowed for.

    The rigid overlap catches a scan that lies wrong; the affine overlap and the mutual information, measured where
    the affine fit lays the scan, catch an object that is no brain (a box, a bottle) and an upside-down header.
    """
    return [
        Check("overlap with the atlas brain, rigid (Dice)", rigid_dice, low=min_overlap),
        Check("overlap with the atlas brain, affine (Dice)", affine_dice, low=min_overlap + 0.2),
        Check(
            "likeness to a brain (mutual information with the atlas, affine)",
            information,
            low=min_information,
            unit="nats",
        ),
    ]


def likeness_checks(information: float, modality: str, hard: bool = True) -> list[Check]:
    """Of a further sequence: whether it shows the head that the first one shows, where it was laid."""
    name = f"likeness to the {modality} sequence (mutual information inside the brain)"
    return [Check(name, information, low=LIKE, unit="nats", hard=hard)]


def coverage_checks(covered: np.ndarray, brain: np.ndarray) -> list[Check]:
    """Of a further sequence: how much of the brain lies outside its field of view, where its last slice stands in."""
    outside = float((brain & ~covered).sum() / max(int(brain.sum()), 1))
    return [
        Check("brain outside the field of view (share)", outside, high=0.1),
        Check("brain at the border of the field of view (share)", outside, high=0.01, hard=False),
    ]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two bool masks of one shape; 0 where both are empty."""
    return float(2 * (a & b).sum() / max(int(a.sum()) + int(b.sum()), 1))


def mutual_information(a: np.ndarray, b: np.ndarray, bins: int = 32) -> float:
    """Mutual information of two samples in nats, from a joint histogram of equally filled bins (values 0..log(bins))."""

    def ranks(v: np.ndarray) -> np.ndarray:
        edges = np.unique(np.quantile(v, np.linspace(0, 1, bins + 1)[1:-1]))
        return np.digitize(v, edges)

    joint = np.histogram2d(ranks(a), ranks(b), bins=(np.arange(bins + 1) - 0.5,) * 2)[0]
    joint /= joint.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / expected[filled])).sum())


def demand(checks: Sequence[Check]) -> None:
    """Raise ScanError naming every hard check that failed."""
    failed = [c.sentence() for c in checks if c.hard and not c.passed]
    if failed:
        raise ScanError("; ".join(failed) + ".")


def flags(checks: Sequence[Check]) -> list[str]:
    """Sentences for the soft checks that did not hold."""
    return [c.sentence() for c in checks if not c.hard and not c.passed]
