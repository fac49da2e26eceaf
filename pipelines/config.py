"""Typed, closed configs: YAML in, pydantic models out; an unknown key or a wrong type is an error with a hint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from preprocessing.scans import SUFFIXES, nearest

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


Size = Annotated[tuple[int, ...], Field(min_length=2, max_length=3)]


class ConfigError(ValueError):
    """A config, key, model or modality that does not exist or has the wrong type."""


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
    picture's colour planes, from the first on, that become channels; 1 makes it grey. Both are stored where they say something,
    so that what one channel is made of reads as it always has.
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
            raise ValueError(f"channels={self.channels} is for pictures; name the sequences of a scan as MODALITY={self.modality}+flair")
        if len({self.modality, "picture", *(s.modality for s in self.sequences)}) < 2 + len(self.sequences) and self.sequences:
            raise ValueError(f"'{self.name}': each modality once, and no picture among them")
        return self

    @model_serializer(mode="wrap")
    def _stored(self, write: Any) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        return {k: v for k, v in values.items() if k not in self._silent()}

    def __repr_args__(self) -> Any:
        return ((k, v) for k, v in super().__repr_args__() if k not in self._silent())

    def _silent(self) -> set[str]:
        return ({"sequences"} if not self.sequences else set()) | ({"channels"} if self.channels == 1 else set())


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
        silent = (() if self.symmetry else ("symmetry", "reach")) + (() if self.scores else ("scores",))
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
    model: dict[str, Any] = {}
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
        return self.model_copy(update={"loop": self.loop.model_copy(update={"loader_workers": None})})


class Protocol(Closed):
    """How runs are tested and compared; configs/protocol/<name>.yaml, and named so in every output.

    `seeds` runs on one split, or with `folds` one run per fold and repeat. `slices`: also per slice. `by`: columns of the
    scan or slice table whose classes get figures of their own. `resamples` bootstrap samples of subjects.
    """

    name: str
    seeds: int = Field(5, ge=1)
    folds: int | None = Field(None, ge=3)
    repeats: int = Field(1, ge=1)
    slices: bool = True
    by: tuple[str, ...] = ("pathology",)
    resamples: int = Field(1000, ge=1)


def load_protocol(name: str, overrides: list[str] | None = None) -> Protocol:
    """The protocol of configs/protocol/<name>.yaml with overrides such as "seeds=3"."""
    path = _known(CONFIGS / "protocol", name, "PROTOCOL")
    return validate(Protocol, {"name": name} | merge(read_yaml(path), overrides or []), path)


def load_recipe(modality: str, overrides: list[str] | None = None, template: str | None = None) -> Recipe:
    """The recipe of configs/modality/<modality>.yaml with overrides such as "brain=none".

    "t1+flair" takes the first modality's recipe, and of each further one its intensity; "flair.intensity.top=0.9" changes that.
    """
    first, *further = modality.split("+")
    given = overrides or []
    own = [text for text in given if text.partition(".")[0] in further]
    path = _known(CONFIGS / "modality", first, "MODALITY")
    values = merge(read_yaml(path), [text for text in given if text not in own])
    for name in further:
        sequence = read_yaml(_known(CONFIGS / "modality", name, "MODALITY"))
        mine = [text.partition(".")[2] for text in own if text.partition(".")[0] == name]
        kept = {k: sequence[k] for k in Series.model_fields if k in sequence}
        values["sequences"] = [*values.get("sequences", []), merge(kept, mine)]
    if template:
        values["template"] = str(Path(template).resolve())
    return validate(Recipe, values, path)


def load_run_config(model: str, overrides: list[str] | None = None, preset: str | None = None) -> RunConfig:
    """The config of configs/<model>.yaml, under a preset (its part `all`, then its part <model>) and overrides such as "loop.seed=1"."""
    path = _known(CONFIGS, model, "MODEL")
    values = read_yaml(path)
    if preset:
        laid = read_yaml(_known(CONFIGS / "preset", preset, "PRESET"))
        values = _over(_over(values, laid.get("all", {})), laid.get(model, {}))
    return validate(RunConfig, {"name": model} | merge(values, overrides or []), path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; ConfigError where it is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({error}).") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(values).__name__}.")
    return values


def read_config(kind: type[Any], path: Path) -> Any:
    """A config of `kind` from the YAML file that holds it; ConfigError where it is none."""
    return validate(kind, read_yaml(path), path)


def write_yaml(config: BaseModel) -> str:
    """A config as YAML text that reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def merge(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply "a.b=value" overrides (values are YAML) to nested dictionaries; the keys are checked on validation."""
    values = _over({}, values)
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"'{text}': expected key=value, such as stages.finetune.max_epochs=50.")
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(f"'{text}': '{parent}' holds a value, not keys.")
            node = child
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"'{text}': the value is not readable as YAML.") from None
    return values


def validate(kind: type[Any], values: dict[str, Any], where: object) -> Any:
    """Build `kind` from values; every problem in one ConfigError, with the nearest spelling of an unknown key."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_problem(kind, e) for e in error.errors())) from None
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def names(folder: Path) -> list[str]:
    """Names of the YAML files in a folder."""
    return sorted(p.stem for p in folder.glob("*.yaml"))


def _known(folder: Path, name: str, what: str) -> Path:
    known = names(folder)
    if name not in known:
        raise ConfigError(f"unknown {what} '{name}'; known: {', '.join(known)}{nearest(name, known)}")
    return folder / f"{name}.yaml"


def _over(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in top.items():
        nested = isinstance(value, dict)
        result[key] = _over(base[key] if isinstance(base.get(key), dict) else {}, value) if nested else value
    return result


def _problem(kind: type[BaseModel], error: Any) -> str:
    if error["type"] == "value_error":  # of a validator of our own, whose sentence says it all
        return str(error["ctx"]["error"])
    place = [str(p) for p in error["loc"]]
    if error["type"] != "extra_forbidden":
        return f"'{'.'.join(place)}': {error['msg'].lower()}, got {error['input']!r}"
    fields = _fields(kind, place[:-1])
    return f"unknown key '{'.'.join(place)}'; known: {', '.join(fields)}{nearest(place[-1], fields)}"


def _fields(kind: Any, path: list[str]) -> list[str]:
    for part in path:
        annotation = kind.model_fields[part].annotation if part in getattr(kind, "model_fields", {}) else kind
        args = getattr(annotation, "__args__", ())
        kind = next((a for a in (annotation, *args) if hasattr(a, "model_fields")), kind)
    return list(kind.model_fields)
