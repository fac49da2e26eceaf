"""Brains by deepbet (Fisch et al. 2024); who has it loads torch, and nothing else that is large."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from preprocessing.scans import ScanError

LIKELY = 0.5  # probability above which a voxel is brain


def deepbet(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The brain in an image whose axes are those of RAS+, at 1 mm; bool. ScanError without one."""
    model = _model()
    try:
        likely = model.run_model(np.ascontiguousarray(data))
        return model.postprocess(likely > LIKELY)
    except (AssertionError, IndexError, ValueError, RuntimeError) as error:
        # deepbet asserts where it finds no brain
        raise ScanError(f"deepbet found no brain ({error}).") from None


@lru_cache(maxsize=1)
def _model() -> Any:
    from deepbet.bet import BrainExtraction  # loads torch; needed for this method alone

    return BrainExtraction(no_gpu=True)
