"""Intensities to [0, 1]: fixed CT windows, and MR by percentiles, landmarks or white matter."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, signal

from preprocessing.background import distinct
from preprocessing.scans import ScanError

TISSUE = (10, 60)  # HU between which the mode of brain tissue is looked for; CSF and bone are not
TISSUE_BLUR = 2.0  # HU, sd of the Gaussian over the histogram

# Percentiles that `nyul` maps, and where they come to lie. These are the percentiles of the
# ICBM152 T1 of `register.load_atlas()` inside its brain, scaled as the T1 recipe scales a scan:
# the 1st percentile is 0 and the 95th 0.75.
LANDMARKS = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
STANDARD = (0.0, 0.265, 0.385, 0.44, 0.48, 0.515, 0.565, 0.625, 0.685, 0.73, 0.785)

MOST_LEVELS = 65536  # that whole numbers of 16 bits can have
OFF_LEVEL = 0.05  # of a step, by which values stored as float32 may miss their level
PART = 400_000  # voxels in which it is seen that values hardly repeat

WHITE_BINS = 256  # of the histogram of MR, between the 1st percentile and the 99.5th
WHITE_BLUR = 5.0  # bins
# A mode counts as main where it is this high, and stands out this far, as shares of the highest.
MAIN_HEIGHT = 0.25
MAIN_PROMINENCE = 0.02


def window(hu: np.ndarray, brain: np.ndarray, low: float, high: float) -> np.ndarray:
    """CT in HU through a fixed window to [0, 1], 0 outside the brain; never scaled per image."""
    return _inside(brain, np.clip((hu[brain] - low) / (high - low), 0, 1))


def match_tissue(hu: np.ndarray, brain: np.ndarray, tissue: float) -> np.ndarray:
    """CT in HU with all values shifted, so that the mode of brain tissue lies at `tissue` HU."""
    return hu + (tissue - tissue_mode(hu[brain]))


def tissue_mode(values: np.ndarray) -> float:
    """The commonest HU of brain tissue: the peak of a smoothed histogram from 10 to 60 HU.

    Air, CSF, fresh blood and bone do not move it. Raises ScanError where nothing peaks there.
    """
    low, high = TISSUE
    margin = int(4 * TISSUE_BLUR)  # so that the blur at the ends of the range sees what is there
    centres = np.arange(low - margin, high + margin + 1)
    counts, _ = np.histogram(values, np.append(centres, centres[-1] + 1) - 0.5)
    smooth = ndimage.gaussian_filter1d(counts.astype(float), TISSUE_BLUR, mode="constant")
    inside = smooth[margin:-margin]
    top = int(np.argmax(inside))
    if not 0 < top < len(inside) - 1:
        raise ScanError(
            f"no peak of brain tissue between {low} and {high} HU; "
            "look whether the scan is in HU, or leave intensity.tissue out."
        )
    return low + _summit(inside, top)


def grey_levels(data: np.ndarray) -> np.ndarray:
    """MR whose values are evenly spaced levels, as whole numbers from 0 on; float32.

    Scanners store whole numbers. A scan a * x + b of one (a above 0), however it was made, gives
    the same levels to the bit, and so the same brain, pose and image. NaN and infinity stay. Any
    other scan is returned as it is: one whose values are continuous, or unevenly spaced.
    """
    # continuous values hardly ever repeat; that is seen in a part of the scan
    part = data.ravel(order="K")[:: max(1, data.size // PART)]
    is_whole = np.issubdtype(data.dtype, np.integer)
    if not is_whole and len(np.unique(part)) > MOST_LEVELS:
        return data
    finite = np.isfinite(data)
    values = data if finite.all() else data[finite]
    found = distinct(values)[0].astype(np.float64)
    if not 2 <= len(found) <= MOST_LEVELS:
        return data

    gaps = np.diff(found)
    step = gaps[gaps < 1.5 * gaps.min()].mean()
    count = round((found[-1] - found[0]) / step)
    step = (found[-1] - found[0]) / max(count, 1)
    levels = (found - found[0]) / step
    if count > MOST_LEVELS or np.abs(levels - np.round(levels)).max() > OFF_LEVEL:
        return data
    whole = np.round((values.astype(np.float64) - found[0]) / step)
    if values is data:
        return whole.astype(np.float32)
    result = data.astype(np.float32)
    result[finite] = whole
    return result


def percentiles(
    image: np.ndarray, brain: np.ndarray, low: float, high: float, top: float = 1.0
) -> np.ndarray:
    """MR to [0, 1] by two percentiles inside the brain, which become 0 and `top`.

    The result is clipped, and 0 outside the brain. A `top` below 1 leaves room for tissue brighter
    than the `high` percentile, such as a bright lesion. It lets `high` be so low that a large
    lesion does not move it. Raises ScanError where the brain is constant.
    """
    inside = image[brain]
    bottom, ceiling = np.percentile(inside, (low, high))
    if not ceiling > bottom:
        raise _constant(bottom)
    return _inside(brain, np.clip(top * (inside - bottom) / (ceiling - bottom), 0, 1))


def nyul(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """T1 to [0, 1] by landmarks, piecewise linear (Nyul and Udupa 1999, Nyul et al. 2000).

    The percentiles `LANDMARKS` inside the brain become the values `STANDARD`. Beyond the ends the
    outermost pieces go on; the result is clipped, and 0 outside the brain. Raises ScanError where
    the brain is constant.
    """
    inside = image[brain].astype(np.float64)
    # landmarks that coincide, as in scans of few grey values, count once
    found, kept = np.unique(np.percentile(inside, LANDMARKS), return_index=True)
    if len(found) < 2:
        raise _constant(found[0])
    scaled = piecewise(inside, found, np.array(STANDARD)[kept])
    return _inside(brain, np.clip(scaled, 0, 1))


def piecewise(values: np.ndarray, places: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """Values through the straight pieces from `places` (rising) to `standard`, and on beyond."""
    scaled = np.interp(values, places, standard)
    slopes = np.diff(standard) / np.diff(places)
    below = np.minimum(values - places[0], 0) * slopes[0]
    above = np.maximum(values - places[-1], 0) * slopes[-1]
    return scaled + below + above


def white(image: np.ndarray, brain: np.ndarray, low: float, top: float, peak: str) -> np.ndarray:
    """MR to [0, 1]: the `low` percentile inside the brain becomes 0, the `white_peak` `top`.

    The result is clipped, and 0 outside the brain.
    """
    inside = image[brain].astype(np.float64)
    bottom = np.percentile(inside, low)
    bright = white_peak(inside, peak)
    if not bright > bottom:
        raise ScanError(
            f"the {peak} mode inside the brain, {bright:g}, is not above percentile {low:g}, "
            f"{bottom:g}; give a lower intensity.low, or kind=percentiles."
        )
    return _inside(brain, np.clip(top * (inside - bottom) / (bright - bottom), 0, 1))


def white_peak(values: np.ndarray, peak: str) -> float:
    """A mode of the smoothed histogram of MR inside the brain.

    `upper`: the brightest of the main modes, which is white matter in T1. `main`: the highest one.
    In T2 and FLAIR that is brain tissue, for there grey and white matter are one mode or overlap.
    Raises ScanError where the values are constant.
    """
    low, high = np.percentile(values, (1, 99.5))
    if not high > low:
        raise _constant(low)
    counts, _ = np.histogram(values, WHITE_BINS, (low, high))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), WHITE_BLUR, mode="constant")
    smooth /= smooth.max()
    modes, _ = signal.find_peaks(smooth, height=MAIN_HEIGHT, prominence=MAIN_PROMINENCE)
    if not len(modes):
        raise ScanError("the grey values inside the brain have no mode; give kind=percentiles.")
    chosen = int(modes[-1] if peak == "upper" else modes[np.argmax(smooth[modes])])
    return float(low + (_summit(smooth, chosen) + 0.5) * (high - low) / WHITE_BINS)


def _summit(heights: np.ndarray, top: int) -> float:
    """Where the parabola through a highest entry and its two neighbours is highest."""
    before, here, after = heights[top - 1 : top + 2]
    bend = before - 2 * here + after
    return float(top + (0.5 * (before - after) / bend if bend else 0.0))


def _inside(brain: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of the brain's voxels in their places, 0 elsewhere; float32."""
    image = np.zeros(brain.shape, np.float32)
    image[brain] = values
    return image


def _constant(value: float) -> ScanError:
    return ScanError(
        f"the intensity inside the brain is constant ({value:g}); this is no scan of a brain."
    )
