"""What is known of public data sets: configs/dataset/<name>.yaml."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipelines.config import CONFIGS, config_path, read_config
from preprocessing.download import split_digest
from preprocessing.recipe import Closed
from preprocessing.scans import InputError

FOLDER = CONFIGS / "dataset"


class Remote(Closed):
    """A file of a data set, or several that differ by a number.

    `address` and `name` (in the folder; else the last part of the address) hold `{}` where `each`
    is such as "01-72". `digest` is that which the set's makers or other tools publish; it is empty
    where none is known.
    """

    address: str
    name: str = ""
    each: str = Field("", pattern=r"^(\d+-\d+)?$")
    digest: str = ""

    @field_validator("digest")
    @classmethod
    def _is_digest(cls, digest: str) -> str:
        try:
            split_digest(digest)
        except InputError as error:
            raise ValueError(str(error)) from None
        return digest

    def files(self) -> list[tuple[str, str]]:
        """Address and name of each file."""
        name = self.name or urlsplit(self.address).path.rpartition("/")[2]
        if not self.each:
            return [(self.address, name)]
        first, last = self.each.split("-")
        numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        return [(self.address.replace("{}", n), name.replace("{}", n)) for n in numbers]


class Dataset(Closed):
    """Where a public data set is, under which licence, and of whom it is.

    `pictures`: whether pictures of its people may be passed on. `files` are what `make fetch`
    brings; a set without any is to be asked for at `ask`. `terms`: the address of an agreement that
    goes beyond the licence.
    """

    title: str
    address: str
    licence: str
    people: str
    scanners: str
    citation: str
    pictures: bool = True
    holds: str = ""
    size: str = ""
    terms: str = ""
    ask: str = ""
    files: tuple[Remote, ...] = ()


def dataset_of(name: str) -> Dataset | None:
    """What is known of a data set by the name of its cohort; None for any other."""
    path = FOLDER / f"{name}.yaml"
    found: Dataset | None = read_config(Dataset, path) if path.is_file() else None
    return found


def known_dataset(name: str) -> Dataset:
    """What is known of a data set; ConfigError for an unknown one."""
    found: Dataset = read_config(Dataset, config_path(FOLDER, name, "DATASET"))
    return found
