"""The recipe: how scans of one modality are preprocessed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from preprocessing.scans import SUFFIXES


class Closed(BaseModel):
    """A frozen config that knows its keys: any other key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Intensity(Closed):
    """How intensities become [0, 1].

    `window`: between fixed limits in HU. `percentiles`: between percentiles inside the brain, of
    which the upper one becomes `top`; the rest is room for bright lesions.
    """

    kind: Literal["window", "percentiles"]
    low: float
    high: float
    top: float = Field(1.0, gt=0, le=1)


class Limits(Closed):
    """What a scan must measure up to.

    docs/conventions.md names the checks, docs/results.md their measured range on real scans. Each
    modality has limits of its own in configs/modality.
    """

    brain_ml: tuple[float, float] = (600.0, 2300.0)
    min_overlap: float = 0.7  # Dice with the atlas brain, rigid; the affine one must be 0.2 better
    min_information: float = 0.05  # nats of mutual information with the atlas


class Series(Closed):
    """Another sequence of every scan, and its intensities."""

    modality: Literal["ct", "t1", "t2", "flair"]
    intensity: Intensity
    pad: float = 0.0


class Recipe(Closed):
    """Preprocessing of one modality, or of several sequences.

    It is stored with the cohort, and with every run trained on it.

    pad: the value outside the scan.
    spacing: mm of the copy on which the brain is found and the fit is made.
    template: a skull-stripped NIfTI in place of the ICBM152 atlas.
    grid: voxels of the atlas along each axis, or pixels of a picture's frame; None keeps an axis.
    registration_spacing: mm at which scans are fitted to the atlas.
    min_brain_pixels: slices with fewer are dropped.
    sequences: registered to the first one, that of `modality`; they follow it as channels.
    channels: how many colour planes of a picture become channels, from the first on; 1: grey.
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
        """The name of each channel in files: "T1w", "FLAIR"; "picture", "picture-2" and so on."""
        planes = [f"{SUFFIXES[self.modality]}-{i + 1}" for i in range(1, self.channels)]
        return [SUFFIXES[self.modality], *(SUFFIXES[s.modality] for s in self.sequences), *planes]

    @model_validator(mode="after")
    def _one_kind_of_channels(self) -> Recipe:
        if self.channels > 1 and self.modality != "picture":
            raise ValueError(
                f"channels={self.channels} is for pictures; "
                f"name the sequences of a scan as MODALITY={self.modality}+flair"
            )
        modalities = [self.modality, *(s.modality for s in self.sequences)]
        twice = len(set(modalities)) < len(modalities)
        if self.sequences and (twice or "picture" in modalities):
            raise ValueError(f"'{self.name}': each modality once, and no picture among them")
        return self
