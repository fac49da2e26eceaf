"""The config of a run: model, stages, loop, reference, postprocessing, calibration.

What each class shapes (`shapes`, `Shapes`) is read by pipelines/detect/identity.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from evaluation.postprocess import Strength
from pipelines.config import CONFIGS, config_path, merge, overlaid, read_yaml, validate
from pipelines.detect.identity import Level, Shapes
from preprocessing.recipe import Closed

Size = Annotated[tuple[int, ...], Field(min_length=2, max_length=3)]


class Augmentation(Closed):
    """Random changes of training slices; 0 switches one off.

    Degrees, fractions of the image, factors.
    """

    shapes: ClassVar[Level] = "training"

    flip: float = Field(0.0, ge=0, le=1)
    rotate: float = Field(0.0, ge=0)
    translate: float = Field(0.0, ge=0, le=0.5)
    scale: float = Field(0.0, ge=0, lt=1)
    intensity: float = Field(0.0, ge=0, lt=1)


class Stage(Closed):
    """One training stage: the learning rate falls on a plateau of the validation loss; early stop.

    `keep` says which weights stay: those of the epoch with the "best" validation loss, or the
    "last" ones. The loss of a GAN does not say how good it is, so a GAN keeps the last.
    """

    shapes: ClassVar[Level] = "training"

    max_epochs: int = Field(ge=0)
    lr: float = Field(gt=0)
    optimizer: Literal["adam", "rmsprop"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    keep: Literal["best", "last"] = "best"
    patience: int = Field(10, ge=1)
    lr_patience: int = Field(4, ge=1)
    lr_factor: float = Field(0.5, gt=0, lt=1)
    steps_per_epoch: int | None = Field(None, ge=1)


class Loop(Closed):
    """What every stage shares. `batch_size` is the total over all processes.

    `channels_last` lays out images and weights pixel by pixel; `compile` lets torch compile the
    networks. Both change speed and last digits alone (docs/performance.md). `loader_workers` are
    processes that read slices. Left out, a GPU gets two; a CPU gets none, as the network needs its
    cores.
    """

    shapes: ClassVar[Level] = "training"

    seed: int = Field(0, ge=0)
    batch_size: int = Field(64, ge=1)
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    gradient_clip: float | None = Field(1.0, gt=0)
    channels_last: bool = False
    compile: bool = False
    loader_workers: Annotated[int | None, Shapes("nothing")] = Field(None, ge=0)
    accelerator: str = "auto"
    devices: int = Field(1, ge=1)


class Postprocess(Closed):
    """From residual to mask; voxels of the filter are atlas voxels (1 mm)."""

    shapes: ClassVar[Level] = "figures"

    median: Annotated[int, Shapes("map")] = Field(5, ge=0)
    rim_mm: Annotated[float, Shapes("map")] = Field(3.0, ge=0)
    closing_mm: float = Field(2.0, ge=0)
    min_volume_mm3: float = Field(100.0, ge=0)


class Reference(Closed):
    """The map measured against healthy maps of the same place; see models/parts/healthy_map.py.

    The healthy maps are those of the training scans. With `holdout` they are those of that share of
    them, which the model then does not see.
    """

    shapes: ClassVar[Level] = "map"

    kind: Literal["none", "difference", "ratio", "z"] = "none"
    of: Literal["map", "residual"] = "map"
    tail: Literal["bright", "dark", "both"] = "both"
    smooth: float = Field(1.5, ge=0)
    prior: float = Field(2.0, gt=0)
    mirror: bool = True
    holdout: Annotated[float, Shapes("training")] = Field(0.0, ge=0, lt=1)
    symmetry: float = Field(0.0, ge=0)
    reach: int = Field(3, ge=0)
    scores: bool = False

    @model_validator(mode="after")
    def _scores_of_a_kind(self) -> Reference:
        if self.scores and self.kind == "none":
            raise ValueError("reference.scores=true needs a reference.kind, such as z")
        return self

    @property
    def active(self) -> bool:
        """Whether a map is anything else than the model's own."""
        return self.kind != "none" or self.symmetry > 0


class Wrm(Closed):
    """Training on the worst image near each one (Sinha et al. 2017); pipelines/training/wrm.py.

    Before an optimiser's step the images go `steps` steps up the loss less `gamma` times their mean
    squared move. A larger gamma keeps them nearer; .inf is plain training.
    """

    shapes: ClassVar[Level] = "training"

    gamma: float = Field(gt=0)
    steps: int = Field(15, ge=1)


class Harmonise(Closed):
    """Intensities of new scans brought to those of the training scans; `make adapt` writes it.

    Straight pieces from the intensities `given` to those `wanted`, both rising from 0 to 1.
    """

    shapes: ClassVar[Level] = "map"

    given: tuple[float, ...] = Field(min_length=2)
    wanted: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _pieces(self) -> Harmonise:
        for knots, least in ((self.given, 0.0), (self.wanted, -1e-12)):
            steps = [b - a for a, b in pairwise(knots)]
            if (knots[0], knots[-1]) != (0, 1) or min(steps) <= least:
                raise ValueError("expected rising numbers from 0 to 1, given and wanted")
        if len(self.given) != len(self.wanted):
            raise ValueError("expected as many numbers wanted as given")
        return self


class Calibration(Closed):
    """Operating points and scan score; see pipelines/detect/points.py.

    The scan score is the mean of the highest `score_fraction` of the brain's voxels. `score` says
    of what:

    - "map": the map itself;
    - "model": a volume of the model's own slice scores, one score where it works on volumes;
    - "cluster": the map's threshold-free cluster enhancement; large components count for more.

    A slice's score is the same within the slice, plus `context` times that of its scan: a slice of
    a scan with a finding is more suspicious.

    Masks are cut at `point`. "finding" outlines components at the `outline` quantile of healthy
    voxels. It keeps those that are stronger than the strongest one of nine healthy scans in ten
    (`false_alarm`); `strength` says stronger in what (evaluation/postprocess.py). The other points
    keep every component: the "quantile" of healthy voxels, "conformal" at the `false_alarm` rate
    per scan, the "share" of healthy data under the threshold.

    With `folds` the model is trained so many times, each time without one part of the healthy
    scans, and calibrated on all of them (models/parts/folded.py).
    """

    shapes: ClassVar[Level] = "figures"

    folds: Annotated[int, Shapes("training"), Field(ge=0)] = 0
    point: Literal["finding", "quantile", "conformal", "share"] = "finding"
    strength: Strength = "peak"
    outline: float = Field(0.998, gt=0, lt=1)
    quantile: float = Field(0.99, gt=0, lt=1)
    false_alarm: float = Field(0.1, gt=0, lt=1)
    share: float = Field(0.92, gt=0, lt=1)
    score: Annotated[Literal["map", "model", "cluster"], Shapes("map")] = "map"
    score_fraction: float = Field(0.01, gt=0, le=1)
    context: float = Field(0.0, ge=0)

    @field_validator("folds")
    @classmethod
    def _more_than_one_fold(cls, folds: int) -> int:
        if folds in (1, 2):
            raise ValueError(
                f"{folds} folds leave too little to train on; expected 0, or 3 or more"
            )
        return folds


def is_none(value: object) -> bool:
    """Whether a setting is left out."""
    return value is None


class RunConfig(Closed):
    """All that `make train` is told; `model` holds the constructor arguments of the model's class.

    Slices are resized to `image_size`; with three numbers whole scans are, for a model with
    `spatial_dims`. With `patch_size` the network sees patches: one from the brain per slice or scan
    in training, overlapping ones, averaged, in inference. `around` adds the slices so many places
    further up or down as channels, such as [-4, 4]. `plane` is what slices are cut along. `wrm` and
    `harmonise` are written where they are set alone: other runs stay byte for byte as they were.
    """

    shapes: ClassVar[Level] = "training"

    name: str
    model: dict[str, Any] = Field(default_factory=dict)
    image_size: Size = (128, 128)
    patch_size: Size | None = None
    around: tuple[int, ...] = ()
    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    stages: dict[str, Stage]
    augmentation: Augmentation = Augmentation()
    loop: Loop = Loop()
    reference: Reference = Reference()
    postprocess: Postprocess = Postprocess()
    calibration: Calibration = Calibration()
    wrm: Wrm | None = Field(None, exclude_if=is_none)
    harmonise: Annotated[Harmonise | None, Shapes("map")] = Field(None, exclude_if=is_none)


def load_run_config(
    model: str, overrides: list[str] | None = None, preset: str | None = None
) -> RunConfig:
    """The config of configs/<model>.yaml with a preset over it and overrides such as "loop.seed=1".

    Of a preset its part `all` is laid over the config, then its part <model>.
    """
    path = config_path(CONFIGS, model, "MODEL")
    values = read_yaml(path)
    if preset:
        laid = read_yaml(config_path(CONFIGS / "preset", preset, "PRESET"))
        values = overlaid(overlaid(values, laid.get("all", {})), laid.get(model, {}))
    return validate(RunConfig, {"name": model} | merge(values, overrides or []), path)
