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

    `window`: between the fixed limits `low` and `high` in HU. With `tissue` all values of a scan
        are shifted first, so that the mode of its brain tissue lies at that HU.
    `percentiles`: between the percentiles `low` and `high` inside the brain, of which the upper
        one becomes `top`; the rest is room for bright lesions.
    `nyul`: percentiles of the brain onto those of the atlas' T1. For T1.
    `white`: the percentile `low` becomes 0 and a mode of the brain `top`. `peak` says which mode:
        "upper", white matter of T1, or "main", brain tissue of T2 and FLAIR.
    """

    kind: Literal["window", "percentiles", "nyul", "white"]
    low: float = 1.0
    high: float = 99.0
    top: float = Field(1.0, gt=0, le=1)
    tissue: float | None = None
    peak: Literal["upper", "main"] | None = None

    @model_validator(mode="after")
    def _settings_go_with_the_kind(self) -> Intensity:
        self._demand_limits()
        if self.kind == "nyul" and self.top != 1.0:
            raise ValueError(f"kind=nyul has values of its own; leave top={self.top:g} out")
        if self.kind == "white" and self.top == 1.0:
            raise ValueError(
                "kind=white lays the peak at top; give top below 1, such as 0.75, "
                "or all that is brighter is lost"
            )
        if (self.kind == "white") != (self.peak is not None):
            raise ValueError(
                f"kind={self.kind}, peak={self.peak}: peak goes with kind=white and is needed "
                "there; give upper for T1, main for T2 and FLAIR"
            )
        return self._demand_tissue()

    def _demand_limits(self) -> None:
        """Limits are named where the kind needs them, and left alone where it does not."""
        if self.kind in ("window", "percentiles"):
            missing = [name for name in ("low", "high") if name not in self.model_fields_set]
            if missing:
                raise ValueError(f"'intensity': kind={self.kind} needs {' and '.join(missing)}")
            if not self.low < self.high:
                raise ValueError(f"low={self.low:g} must lie below high={self.high:g}")
        elif self.high != 99.0 or (self.kind == "nyul" and self.low != 1.0):
            unused = "high" if self.kind == "white" else "low and high"
            raise ValueError(f"kind={self.kind} does not use {unused}; leave out")
        if self.kind != "window" and (self.low < 0 or self.high > 100):
            raise ValueError(f"low={self.low:g}, high={self.high:g}: percentiles lie from 0 to 100")
        if self.kind == "white" and self.low >= 50:
            raise ValueError(f"low={self.low:g}: the percentile that becomes 0 lies below 50")

    def _demand_tissue(self) -> Intensity:
        """A mode of brain tissue is of CT, and is looked for from 10 to 60 HU."""
        if self.tissue is None:
            return self
        if self.kind != "window":
            raise ValueError(f"tissue={self.tissue:g} goes with kind=window, that is with CT")
        if not (10 <= self.tissue <= 60 and self.low < self.tissue < self.high):
            raise ValueError(
                f"tissue={self.tissue:g} must lie from 10 to 60 HU and inside the window"
            )
        return self


class Limits(Closed):
    """What a scan must measure up to.

    docs/conventions.md names the checks, docs/results.md their measured range on real scans. Each
    modality has limits of its own in configs/modality.
    """

    brain_ml: tuple[float, float] = (600.0, 2300.0)  # in a chest CT of the lungs
    min_overlap: float = 0.7  # Dice with the atlas brain, rigid; the affine one must be 0.2 better
    min_information: float = 0.05  # nats of mutual information with the atlas
    # Likeness to the atlas over that in another pose. Right poses lie at 1.58 and above, wrong ones
    # at 1.08 and below (docs/results/poses.json): a short fit of the right pose may end early.
    # At 0 no other pose is looked at.
    min_pose_ratio: float = Field(1.3, ge=0)
    max_gb: float = Field(4.0, gt=0)  # a scan that takes as much as float32 is refused unread


class Series(Closed):
    """Another sequence of every scan, and its intensities."""

    modality: Literal["ct", "t1", "t2", "flair"]
    intensity: Intensity
    pad: float = 0.0


class Recipe(Closed):
    """Preprocessing of one modality, or of several sequences.

    It is stored with the cohort, and with every run trained on it.

    pad: the value outside the scan.
    spacing: mm of the copy on which the brain is found and the fit is made; of a chest CT, mm of
        its frame.
    template: a skull-stripped NIfTI in place of the ICBM152 atlas.
    grid: voxels of the atlas along each axis, or of the frame of a picture or a chest CT; None
        keeps an axis.
    registration_spacing: mm at which scans are fitted to the atlas.
    orientation: what becomes of a scan whose header does not say how it lies. `guess` finds it by
        registration, which cannot tell left from right.
    align: whether a scan keeps its size in the atlas ("rigid"), is scaled and sheared onto it
        ("affine"), or also deformed, within limits ("deformable"). Maps come back home any way.
    min_brain_pixels: slices with fewer are dropped.
    sequences: registered to the first one, that of `modality`; they follow it as channels.
    channels: how many colour planes of a picture become channels, from the first on; 1: grey.
    """

    modality: Literal["ct", "t1", "t2", "flair", "picture", "chest_ct"]
    intensity: Intensity
    pad: float = 0.0
    spacing: float = Field(1.0, gt=0)
    brain: Literal["auto", "deepbet", "bet", "none"] = "auto"
    n4: bool = False
    template: str | None = None
    grid: tuple[int | None, int | None, int | None] = (240, 240, None)
    registration_spacing: float = Field(3.0, gt=0)
    orientation: Literal["refuse", "guess"] = "refuse"
    align: Literal["rigid", "affine", "deformable"] = "rigid"
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
        if self.align != "rigid" and self.modality == "picture":
            raise ValueError(f"align={self.align} is for scans; a picture has no atlas")
        if self.modality == "chest_ct":
            self._demand_no_atlas()
        modalities = [self.modality, *(s.modality for s in self.sequences)]
        twice = len(set(modalities)) < len(modalities)
        if self.sequences and (twice or "picture" in modalities):
            raise ValueError(f"'{self.name}': each modality once, and no picture among them")
        return self

    def _demand_no_atlas(self) -> None:
        """A chest CT stands alone: there is no atlas of it, and no brain in it."""
        brain = {"template", "brain", "orientation", "align", "n4", "sequences"}
        odd = sorted(k for k in brain if getattr(self, k) != type(self).model_fields[k].default)
        if odd:
            raise ValueError(f"{', '.join(odd)}: of brains alone; leave out for chest_ct")
        if (
            self.intensity.kind not in ("window", "percentiles")
            or self.intensity.tissue is not None
        ):
            raise ValueError("intensity of chest_ct: kind=window or percentiles, without tissue")
