"""The recipe: how scans of one modality are preprocessed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from preprocessing.scans import SUFFIXES


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Intensity(Closed):
    """`window`: fixed HU limits; `percentiles`: limits inside the brain, the upper of which becomes `top`."""

    kind: Literal["window", "percentiles"]
    low: float
    high: float
    top: float = Field(1.0, gt=0, le=1)


class Limits(Closed):
    """What a scan must measure up to; see docs/conventions.md for where the numbers come from."""

    brain_ml: tuple[float, float] = (600.0, 2300.0)
    min_overlap: float = 0.7
    min_information: float = 0.05


class Series(Closed):
    """A further sequence of every scan: its modality, and what of that modality's recipe is its own."""

    modality: Literal["ct", "t1", "t2", "flair"]
    intensity: Intensity
    pad: float = 0.0


class Recipe(Closed):
    """Preprocessing of one modality, or of several sequences; stored with the cohort and with every run trained on it.

    `sequences` are registered to the first one, that of `modality`, and follow it as channels. `channels` is the number of a
    picture's colour planes, from the first on, that become channels; 1 makes it grey.
    """

    modality: Literal["ct", "t1", "t2", "flair", "picture"]
    intensity: Intensity
    pad: float = 0.0
    spacing: float = Field(1.0, gt=0)
    brain: Literal["auto", "deepbet", "bet", "none"] = "auto"
    n4: bool = False
    template: str | None = None
    grid: tuple[int | None, int | None, int | None] = (240, 240, None)
    registration_spacing: float = Field(3.0, gt=0)
    min_brain_pixels: int = Field(10, ge=1)
    limits: Limits = Limits()
    sequences: tuple[Series, ...] = ()
    channels: int = Field(1, ge=1)

    @property
    def name(self) -> str:
        """As MODALITY has it: "t1", or "t1+flair" for several sequences."""
        return "+".join((self.modality, *(s.modality for s in self.sequences)))

    @property
    def suffixes(self) -> list[str]:
        """The name of each channel in files: "T1w", "FLAIR"; of a picture "picture", "picture-2" and so on."""
        planes = [f"{SUFFIXES[self.modality]}-{i + 1}" for i in range(1, self.channels)]
        return [SUFFIXES[self.modality], *(SUFFIXES[s.modality] for s in self.sequences), *planes]

    @model_validator(mode="after")
    def _one_kind_of_channels(self) -> Recipe:
        if self.channels > 1 and self.modality != "picture":
            raise ValueError(
                f"channels={self.channels} is for pictures; name the sequences of a scan as MODALITY={self.modality}+flair"
            )
        if (
            len({self.modality, "picture", *(s.modality for s in self.sequences)})
            < 2 + len(self.sequences)
            and self.sequences
        ):
            raise ValueError(f"'{self.name}': each modality once, and no picture among them")
        return self
