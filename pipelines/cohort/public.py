"""What is known of public data sets: configs/dataset/<name>.yaml."""

from __future__ import annotations

from pipelines.config import CONFIGS, read_config
from preprocessing.recipe import Closed


class Dataset(Closed):
    """Where a public data set is, under which licence, and of whom it is.

    `pictures`: whether pictures of its people may be passed on.
    """

    title: str
    address: str
    licence: str
    people: str
    scanners: str
    citation: str
    pictures: bool = True


def dataset_of(name: str) -> Dataset | None:
    """What is known of a data set by the name of its cohort; None for any other."""
    path = CONFIGS / "dataset" / f"{name}.yaml"
    found: Dataset | None = read_config(Dataset, path) if path.is_file() else None
    return found
