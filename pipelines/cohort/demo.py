"""The demo's virtual cohort and its preprocessed data, made where they are not there yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipelines.cohort.preprocess import list_input, preprocess_cohort
from pipelines.config import DEMO, load_recipe
from preprocessing.datasets import virtual_chest, virtual_fundus
from preprocessing.datasets.virtual import make_cohort
from preprocessing.scans import InputError


def demo_table(seed: int = 0, modality: str = "t1") -> Path:
    """The virtual cohort of a modality: a table of T1 heads or chests, a folder of fundus pictures.

    InputError for a modality that has none.
    """
    if modality == "t1":
        return make_cohort(DEMO / "cohort", seed=seed)
    if modality == "chest_ct":
        return virtual_chest.make_cohort(DEMO / "chests", seed=seed)
    if modality == "fundus":
        return virtual_fundus.make_cohort(DEMO / "fundus", seed=seed)
    raise InputError(
        f"{modality}: there is no virtual cohort of it, only of t1, chest_ct and fundus; "
        "give --input the scans."
    )


def demo_data(page: Callable[..., str], seed: int = 0) -> Path:
    """The demo's preprocessed cohort; `page` makes its quality.html, as in `preprocess_cohort`."""
    data = DEMO / "data"
    if not (data / "scans.tsv").is_file():
        data.mkdir(parents=True, exist_ok=True)
        preprocess_cohort(
            list_input(demo_table(seed), "t1", data), load_recipe("t1"), data, page=page
        )
    return data
