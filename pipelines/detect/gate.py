"""Is a scan as a whole like the healthy scans that a run knows? One p-value for all features.

A detector of what is unusual cannot tell an unusual scanner from an unusual brain (Heer et al.
2021). So this looks at the scan as a whole, before any lesion: the features of `typical`, their
squared Mahalanobis distance with a shrunk covariance (Ledoit and Wolf 2004), and its rank among
those of the run's own scans, each measured by the others (jackknife+, Barber et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel

from pipelines.detect.typical import FEWEST, Typical

ALPHA = 0.05  # a scan of the same kind is called unlike no more often than that
NAMED = 2  # features that a sentence names
FLAT = 1e-4  # a spread below that share of the value is rounding, as of voxel sides in headers
TOLERANCE = 0.02  # of its value: how far a feature that never varied may lie without a word


Verdict = Literal["scored", "scored with warning"]


class Gate(BaseModel):
    """How like the run's own healthy scans a scan is as a whole.

    `p_value`: the share of scans of their kind that lie as far out, or farther; it is at least one
    in (their number + 1). `distance` is in standard deviations, over all features. `because` names
    the features that bring most of it.
    """

    verdict: Verdict
    p_value: float
    distance: float
    because: list[str]


@dataclass(frozen=True)
class Fitted:
    """Mean and spread of each feature over some scans, and their joint precision."""

    centre: np.ndarray
    scale: np.ndarray
    precision: np.ndarray

    def parts(self, features: np.ndarray) -> np.ndarray:
        """What each feature brings to the squared distance; the sum is the squared distance."""
        z = (features - self.centre) / self.scale
        return z * (self.precision @ z)


def fit(rows: np.ndarray) -> Fitted:
    """From features (N, F) of scans of one kind. One that never varies has a spread of 2 %."""
    from sklearn.covariance import ledoit_wolf  # slow to load, and training needs no gate

    centre = rows.mean(axis=0)
    spread = rows.std(axis=0, ddof=1)
    least = TOLERANCE * np.maximum(np.abs(centre), FLAT)
    scale = np.where(spread > FLAT * np.abs(centre), spread, least)
    covariance, _ = ledoit_wolf((rows - centre) / scale, assume_centered=True)
    covariance += np.diag(np.where(np.diag(covariance) < FLAT, 1.0, 0.0))
    return Fitted(centre, scale, np.linalg.inv(covariance))


def judge(typical: Typical, features: Mapping[str, float]) -> Gate | None:
    """The verdict on a scan by its features; None where a run knows too few of its own scans."""
    known = {name: values for name, values in typical.features.items() if name in features}
    counts = {len(values) for values in known.values()}
    full = max(counts, default=0)
    names = [name for name, values in known.items() if len(values) == full]
    if full <= FEWEST:
        return None
    rows = np.array([known[name] for name in names]).T
    own = np.array([features[name] for name in names])

    as_far = 0
    for left_out in range(full):
        others = fit(np.delete(rows, left_out, axis=0))
        as_far += others.parts(rows[left_out]).sum() >= others.parts(own).sum()
    p_value = (1 + as_far) / (full + 1)

    parts = fit(rows).parts(own)
    unlike = p_value <= max(ALPHA, 1 / (full + 1))
    largest = np.argsort(-parts)[:NAMED]
    return Gate(
        verdict="scored with warning" if unlike else "scored",
        p_value=round(p_value, 4),
        distance=round(float(np.sqrt(max(parts.sum(), 0.0))), 3),
        because=[names[i] for i in largest] if unlike else [],
    )


def gate_flags(gate: Gate | None) -> list[str]:
    """A sentence for a scan that is unlike the run's own."""
    if gate is None or not gate.because:
        return []
    return [
        f"as a whole unlike the training scans (p {gate.p_value:.2g}; most of all: "
        f"{', '.join(gate.because)}): what is marked may be the scanner and no lesion"
    ]


def refusal(gate: Gate) -> str:
    """Why a scan is not scored where unlike ones are to be refused."""
    return (
        f"unlike the training scans as a whole (p {gate.p_value:.2g}, expected above {ALPHA:g}; "
        f"most of all: {', '.join(gate.because)}); calibrate a run on such scans with "
        "'make calibrate', or score it all the same without --refuse-unlike."
    )
