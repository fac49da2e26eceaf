"""Checks a scan must pass before anyone trusts its map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from preprocessing.images import outer_planes
from preprocessing.recipe import Limits
from preprocessing.scans import ScanError
from preprocessing.warp import Warp

# Nats of mutual information between two MR sequences inside the brain. On OPEN MS they are 0.67
# (T2) and 0.43 (FLAIR) with the T1 they lie on, and 0.06 where they are shifted by 5 mm.
LIKE = 0.1


@dataclass(frozen=True)
class Check:
    """One measured value against its limits, either of which may be open.

    A `hard` check refuses the scan, any other only flags it. `advice` ends the sentence of a check
    that did not hold; `words` stand in its place.
    """

    name: str
    value: float
    low: float = -np.inf
    high: float = np.inf
    unit: str = ""
    hard: bool = True
    advice: str = ""
    words: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.low <= self.value <= self.high)

    def sentence(self) -> str:
        """The value and what was expected, for a message."""
        if self.words:
            return self.words
        found = f"{self.name} is {self.value:.4g} {self.unit}".rstrip()
        advice = f" ({self.advice})" if self.advice else ""
        return f"{found}, expected {self.expected}{advice}"

    @property
    def expected(self) -> str:
        if np.isinf(self.low):
            return f"at most {self.high:g} {self.unit}".rstrip()
        if np.isinf(self.high):
            return f"at least {self.low:g} {self.unit}".rstrip()
        return f"{self.low:g} to {self.high:g} {self.unit}".rstrip()

    def row(self) -> dict[str, Any]:
        """The check as it is written to JSON."""
        row = {k: v for k, v in asdict(self).items() if k not in ("low", "high", "advice", "words")}
        return {
            **row,
            "value": round(float(self.value), 4),
            "expected": self.expected,
            "passed": self.passed,
        }


def image_checks(data: np.ndarray, modality: str, extent_mm: Sequence[float]) -> list[Check]:
    """Before any work: finite voxels, a head-sized field of view and a plausible range of values.

    CT is expected in HU, from 20 or below to 40 or above: pictures windowed to -20..100 HU pass.
    """
    odd = float(1 - np.isfinite(data).mean())
    checks = [Check("share of voxels that are NaN or infinite", odd, high=0)]
    if not checks[0].passed:
        return checks

    smallest = float(min(extent_mm))
    largest = float(max(extent_mm))
    checks += [
        Check("smallest extent of the field of view", smallest, low=60, unit="mm"),
        Check("largest extent of the field of view", largest, low=110, high=600, unit="mm"),
    ]
    low = float(data.min())
    high = float(data.max())
    if modality in ("ct", "chest_ct"):
        voxel_ml = float(np.prod(extent_mm)) / data.size / 1000
        checks += [
            Check("lowest value", low, low=-10000, high=20, unit="HU"),
            Check("highest value", high, low=40, high=40000, unit="HU"),
            _unit_check(data, voxel_ml),
        ]
        if modality == "ct":
            checks += _no_lung_check(data, voxel_ml)
    return [*checks, Check("spread of values (max - min)", high - low, low=1e-12)]


def form_checks(apart_mm: float, degrees: float) -> list[Check]:
    """Of a header with qform and sform: those of the two differences that are too large."""
    checks = [
        Check("distance of qform and sform", apart_mm, high=1, unit="mm", hard=False),
        Check("angle between qform and sform", degrees, high=1, unit="degrees", hard=False),
    ]
    return [check for check in checks if not check.passed]


def guess_check(axes: str) -> Check:
    """Of a scan without orientation, which was guessed; `axes` such as "LPI"."""
    return Check(
        f"orientation guessed as {axes}",
        1,
        high=0,
        hard=False,
        words=f"the header has no orientation; guessed as {axes} by registration; "
        "left and right cannot be told apart this way",
    )


def _unit_check(data: np.ndarray, voxel_ml: float) -> Check:
    """Whether a CT is in HU: dense bone of 950 to 1150 HU never fills a tenth of a head.

    There a brain lies where 1000 or 1024 was added to HU, so that all values are positive.
    """
    volume = float(((data > 950) & (data < 1150)).sum() * voxel_ml)
    return Check(
        "volume at 950 to 1150 HU",
        volume,
        high=500,
        unit="ml",
        advice="the values are not in HU: a brain lies there where 1024 was added; "
        "convert it with its rescale intercept",
    )


def _no_lung_check(data: np.ndarray, voxel_ml: float) -> list[Check]:
    """Whether a head CT holds lungs: the check, only where it fails.

    Lungs fill litres between -850 and -500 HU. In a head only edges of air do, and some foam.
    """
    check = Check(
        "volume at -850 to -500 HU",
        float(((data > -850) & (data < -500)).sum() * voxel_ml),
        high=1000,
        unit="ml",
        advice="lungs: this is a chest CT and no head; give MODALITY=chest_ct",
    )
    return [] if check.passed else [check]


def nan_checks(share: float) -> list[Check]:
    """Of a scan whose background is NaN; none where the share of such voxels is 0."""
    name = "share of voxels that are NaN, taken as background"
    return [Check(name, share, high=0, hard=False)] if share else []


def picture_checks(data: np.ndarray, foreground: np.ndarray) -> list[Check]:
    """A 2-D picture (X, Y, 1): finite pixels, some contrast, a foreground that is not a speck."""
    odd = float(1 - np.isfinite(data).mean())
    return [
        Check("share of pixels that are NaN or infinite", odd, high=0),
        Check("spread of values (max - min)", float(data.max() - data.min()), low=1e-6),
        Check("foreground (share of the picture)", float(foreground.mean()), low=0.02),
    ]


def brain_checks(
    brain: np.ndarray,
    spacing: Sequence[float],
    volume_ml: tuple[float, float],
    organ: str = "brain",
    advice: str = "",
) -> list[Check]:
    """After skull stripping: brain volume, and how much of the brain the field of view cuts off.

    Much of the brain on the border refuses the scan, little of it flags the scan. `organ` may be
    "lung"; `advice` is for a volume that is none of it.
    """
    volume = float(brain.sum() * np.prod(spacing) / 1000)
    largest_face = max(float(plane.sum()) for plane in outer_planes(brain))
    worst = largest_face / max(float(brain.sum()) ** (2 / 3), 1)
    return [
        Check(f"{organ} volume", volume, *volume_ml, unit="ml", advice=advice),
        Check(
            f"{organ} cut by the border of the scan (largest face / volume^2/3)", worst, high=0.9
        ),
        Check(f"{organ} touches the border of the scan", worst, high=0.15, hard=False),
    ]


def lung_checks(hu: np.ndarray, lungs: np.ndarray, windpipe_ml: float, lost: float) -> list[Check]:
    """Of lungs (bool) that are large enough: that they are lungs, and lie in their frame.

    hu: the CT. lost: the share of the lungs outside the frame.
    """
    return [
        Check(
            "median of the lungs",
            float(np.median(hu[lungs])),
            low=-950,
            high=-500,
            unit="HU",
            advice="free air lies at -1000 HU; is the scan in HU?",
        ),
        Check("lung outside the frame (share)", lost, high=0.01, advice="give a larger grid"),
        Check(
            "windpipe",
            windpipe_ml,
            low=3,
            unit="ml",
            hard=False,
            advice="none was followed from the top; the scan is cut, or lies otherwise than its "
            "header says",
        ),
    ]


def registration_checks(
    rigid_dice: float,
    affine_dice: float,
    information: float,
    over_others: float | None,
    limits: Limits,
) -> list[Check]:
    """After registration: overlap of the brains, and likeness to the atlas.

    The rigid overlap catches a scan that lies wrong. The affine overlap and the mutual information
    are measured where the affine fit lays the scan, so that size and shape do not count. They catch
    an object that is no brain (a box, a bottle). `over_others` is the likeness over the best one
    of the same scan in another pose; it catches a header that is wrong about how the head lies
    (docs/results/poses.json). None where it was not looked for.
    """
    checks = [
        Check("overlap with the atlas brain, rigid (Dice)", rigid_dice, low=limits.min_overlap),
        Check(
            "overlap with the atlas brain, affine (Dice)", affine_dice, low=limits.min_overlap + 0.2
        ),
        Check(
            "likeness to a brain (mutual information with the atlas, affine)",
            information,
            low=limits.min_information,
            unit="nats",
            advice="no brain, or one that lies otherwise than its header says, such as back to "
            "front",
        ),
    ]
    if over_others is not None:
        other_pose = Check(
            "likeness as the scan lies, over that in another pose",
            over_others,
            low=limits.min_pose_ratio,
            advice="the header says wrongly how the head lies, such as upside down or back to "
            "front; repair it, or set qform_code and sform_code to 0 and give orientation=guess",
        )
        checks.append(other_pose)
    return checks


def deformation_checks(dice: float, affine_dice: float, warp: Warp) -> list[Check]:
    """After a deformable fit: overlap of the brains, and the greatest local change of volume.

    A deformation that makes the overlap worse than the affine fit has it is flagged.
    """
    volumes = np.concatenate([field.jacobian().ravel() for field in warp.fields])
    change = float(max(volumes.max(), 1 / max(volumes.min(), 1e-6)))
    return [
        Check(
            "overlap with the atlas brain, deformable (Dice)",
            dice,
            low=round(affine_dice - 0.01, 4),
            hard=False,
        ),
        Check("greatest local change of volume, as a factor", change, high=1.6, hard=False),
    ]


def likeness_checks(information: float, modality: str, hard: bool = True) -> list[Check]:
    """Of another sequence: whether it shows the head of the first one where it was laid."""
    name = f"likeness to the {modality} sequence (mutual information inside the brain)"
    return [Check(name, information, low=LIKE, unit="nats", hard=hard)]


def coverage_checks(covered: np.ndarray, brain: np.ndarray) -> list[Check]:
    """Of another sequence: how much of the brain its field of view leaves out.

    There its last slice stands in.
    """
    outside = float((brain & ~covered).sum() / max(int(brain.sum()), 1))
    return [
        Check("brain outside the field of view (share)", outside, high=0.1),
        Check("brain at the border of the field of view (share)", outside, high=0.01, hard=False),
    ]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two bool masks of one shape; 0 where both are empty."""
    return float(2 * (a & b).sum() / max(int(a.sum()) + int(b.sum()), 1))


def mutual_information(a: np.ndarray, b: np.ndarray, bins: int = 32) -> float:
    """Mutual information of two samples in nats, 0..log(bins).

    It comes from a joint histogram whose bins are filled equally.
    """
    edges = np.arange(bins + 1) - 0.5
    joint = np.histogram2d(_ranks(a, bins), _ranks(b, bins), bins=(edges, edges))[0]
    joint /= joint.sum()
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / expected[filled])).sum())


def _ranks(values: np.ndarray, bins: int) -> np.ndarray:
    """The quantile bin of each value, 0..bins - 1."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.digitize(values, edges)


def demand(checks: Sequence[Check]) -> None:
    """Raise ScanError naming every hard check that failed."""
    failed = [c.sentence() for c in checks if c.hard and not c.passed]
    if failed:
        raise ScanError("; ".join(failed) + ".")


def flags(checks: Sequence[Check]) -> list[str]:
    """Sentences for the soft checks that did not hold."""
    return [c.sentence() for c in checks if not c.hard and not c.passed]
