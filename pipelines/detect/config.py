"""The config of a run, typed and closed: model, stages, loop, reference, postprocessing, calibration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipelines.config import CONFIGS, config_path, merge, overlaid, read_yaml, validate
from preprocessing.recipe import Closed

Size = Annotated[tuple[int, ...], Field(min_length=2, max_length=3)]


class Augmentation(Closed):
    """Random changes of training slices; 0 switches one off. Degrees, fractions of the image, factors."""

    flip: float = Field(0.0, ge=0, le=1)
    rotate: float = Field(0.0, ge=0)
    translate: float = Field(0.0, ge=0, le=0.5)
    scale: float = Field(0.0, ge=0, lt=1)
    intensity: float = Field(0.0, ge=0, lt=1)


class Stage(Closed):
    """One training stage: learning rate reduced on a plateau of the validation loss, early stop.

    `keep` says which weights stay: those of the epoch with the "best" validation loss, or for a GAN, whose loss does not say
    how good it is, the "last".
    """

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

    `channels_last` lays out images and weights pixel by pixel, `compile` lets torch compile the networks; both change speed and last
    digits alone, see docs/performance.md for what they bring. `loader_workers` are processes that read slices: left out, two for a GPU and
    none for a CPU, whose cores the network needs itself.
    """

    seed: int = 0
    batch_size: int = Field(64, ge=1)
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    gradient_clip: float | None = Field(1.0, gt=0)
    channels_last: bool = False
    compile: bool = False
    loader_workers: int | None = Field(None, ge=0)
    accelerator: str = "auto"
    devices: int = Field(1, ge=1)


class Postprocess(Closed):
    """From residual to mask; voxels of the filter are atlas voxels (1 mm)."""

    median: int = Field(5, ge=0)
    rim_mm: float = Field(3.0, ge=0)
    closing_mm: float = Field(2.0, ge=0)
    min_volume_mm3: float = Field(100.0, ge=0)


class Reference(Closed):
    """Map measured against the maps of healthy scans at the same place; see models/reference.py.

    The healthy maps are those of the training scans, or with `holdout` of that share of them, which the model then does not see.
    `symmetry` and `scores` count in `repr` where they say something, so that what is made without them is known by the same name.
    """

    kind: Literal["none", "difference", "ratio", "z"] = "none"
    of: Literal["map", "residual"] = "map"
    tail: Literal["bright", "dark", "both"] = "both"
    smooth: float = Field(1.5, ge=0)
    prior: float = Field(2.0, gt=0)
    mirror: bool = True
    holdout: float = Field(0.0, ge=0, lt=1)
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

    def __repr_args__(self) -> Any:
        silent = (() if self.symmetry else ("symmetry", "reach")) + (
            () if self.scores else ("scores",)
        )
        return ((k, v) for k, v in super().__repr_args__() if k not in silent)


class Calibration(Closed):
    """Operating points and scan score; see pipelines/points.py.

    The scan score is the mean of the highest `score_fraction` of the brain's voxels: of the "map", or with `score` "model" of
    a volume that holds the model's own score of each slice (one score where it sees volumes), with "cluster" of the map's threshold-free
    cluster enhancement, where large components count for more. A slice's score is the same within the slice, plus `context` times that
    of its scan: a slice of a scan with a finding is more suspicious than its like in a scan without. `point` is the operating point
    that masks are cut at: "quantile" of healthy voxels, "conformal" at the `false_alarm` rate per scan, or the "share" of
    healthy data under the threshold.
    """

    point: Literal["quantile", "conformal", "share"] = "quantile"
    quantile: float = Field(0.99, gt=0, lt=1)
    false_alarm: float = Field(0.1, gt=0, lt=1)
    share: float = Field(0.92, gt=0, lt=1)
    score: Literal["map", "model", "cluster"] = "map"
    score_fraction: float = Field(0.01, gt=0, le=1)
    context: float = Field(0.0, ge=0)


class RunConfig(Closed):
    """All that `make train` is told; `model` holds the constructor arguments of the model's class.

    Slices are resized to `image_size`, or with three numbers whole scans, for a model with `spatial_dims`. With `patch_size` the
    network sees patches of that size: one drawn from the brain per slice or scan in training, overlapping ones averaged in inference.
    `around` adds the slices so many places further up or down as channels, such as [-4, 4]. `plane` is what the slices are cut along.
    """

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

    @property
    def decisive(self) -> RunConfig:
        """The config without what changes no result: a run with other loader workers is the same run."""
        return self.model_copy(
            update={"loop": self.loop.model_copy(update={"loader_workers": None})}
        )


def load_run_config(
    model: str, overrides: list[str] | None = None, preset: str | None = None
) -> RunConfig:
    """The config of configs/<model>.yaml, under a preset (its part `all`, then its part <model>) and overrides such as "loop.seed=1"."""
    path = config_path(CONFIGS, model, "MODEL")
    values = read_yaml(path)
    if preset:
        laid = read_yaml(config_path(CONFIGS / "preset", preset, "PRESET"))
        values = overlaid(overlaid(values, laid.get("all", {})), laid.get(model, {}))
    return validate(RunConfig, {"name": model} | merge(values, overrides or []), path)
