"""The run folder: all that inference needs, written by training, read by infer and evaluate."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from evaluation.metrics import VoxelHistogram
from evaluation.thresholds import percentile_of
from models.base import AnomalyModel
from pipelines.cohort.cases import count_parts
from pipelines.config import ConfigError, read_config, read_recipe
from pipelines.detect.build import build_run, pick_device
from pipelines.detect.config import RunConfig
from pipelines.detect.detector import Detector, NativeMap, cut, scan_score, to_native
from pipelines.detect.folder import demand_finished, demand_own_files, read_history, seal
from pipelines.detect.gate import Gate, gate_flags, judge
from pipelines.detect.memory import Memory, Recalled, read_memory, recall
from pipelines.detect.points import (
    Point,
    ScoredScan,
    conformal,
    finding,
    point_of,
    promise_for,
    quantile,
    scores_of,
    share,
    strongest_of,
)
from pipelines.detect.report import Detection, Report, findings, of_scan
from pipelines.detect.typical import (
    Compared,
    Typical,
    compare_with,
    flags_of,
    own_features,
    read_typical,
)
from pipelines.versions import __version__, shown_path
from preprocessing.files import file_digest, read_json, write_atomic, write_json
from preprocessing.prepare import Prepared, prepare
from preprocessing.recipe import Recipe
from preprocessing.scans import NOTICE, InputError, Scan
from preprocessing.warp import Map

GZIP = b"\x1f\x8b"


class HealthyReference(BaseModel):
    """reference.json: scores of the healthy validation scans, and quantiles of their voxels.

    `left_out` is how many of the scans a detector went without together; 0 where none was in one.
    """

    score: str
    scans: list[ScoredScan]
    voxel_quantiles: dict[str, float]
    left_out: int = 0


@dataclass(frozen=True)
class Run:
    """A trained run: its detector, the recipe of its scans, operating points, healthy scores.

    `typical` describes its training scans, `memory` what readers have rejected.
    """

    folder: Path
    detector: Detector
    recipe: Recipe
    points: dict[str, Point]
    reference: HealthyReference
    typical: Typical | None = None
    memory: Memory | None = None

    @property
    def config(self) -> RunConfig:
        return self.detector.config

    @property
    def model(self) -> AnomalyModel:
        return self.detector.model

    @property
    def threshold(self) -> float:
        """The voxel threshold of the run's own operating point."""
        return self.points[self.config.calibration.point].voxel

    @property
    def healthy_scores(self) -> np.ndarray:
        """Scores (N,) of the healthy validation scans."""
        return scores_of(self.reference.scans)

    @property
    def healthy_text(self) -> str:
        """Which scans the healthy scores are of, in words."""
        count = len(self.healthy_scores)
        if self.reference.left_out:
            return f"{count} healthy scans, each by the detector that had not seen it"
        return f"{count} healthy validation scans"

    def healthy_strongest(self, at: Point) -> np.ndarray:
        """Strength of each healthy scan's strongest component at a point (N,).

        Empty for another outline than that of point "finding", which it was measured at.
        """
        known = self.points.get("finding")
        same = known and (known.voxel, known.strength) == (at.voxel, at.strength)
        return strongest_of(self.reference.scans) if same else np.zeros(0)

    @property
    def healthy_voxels(self) -> VoxelHistogram:
        """Map values inside the brain of the healthy validation scans."""
        path = self.folder / "healthy_voxels.npz"
        if not path.is_file():
            raise InputError(f"{path}: no such file; train the run again with 'make train'.")
        try:
            with np.load(path) as stored:
                return VoxelHistogram.from_rows(stored["rows"])
        except OSError:
            raise
        except Exception:  # numpy and zipfile raise many kinds for a damaged or foreign file
            raise InputError(
                f"{path}: a damaged file; copy the run again, or train it again with 'make train'."
            ) from None

    @property
    def weights_digest(self) -> str:
        """What the network is, as a digest of its weights file."""
        return file_digest(self.folder / "weights.pt")

    @property
    def history(self) -> dict[str, Any]:
        """run.json: how the run was made; empty where the file is missing."""
        return read_history(self.folder)

    def detect(self, scan: Scan, point: str | None = None) -> Detection:
        """Score a raw scan: mask, map and report on its own grid; nothing is written.

        The map is cut at an operating point by its name (`point`), or else at the run's own. Raises
        ScanError for a scan that cannot be used, RefusedScan for one that fails its checks.
        """
        return self.detect_prepared(scan, prepare(scan, self.recipe), self.point(point))

    def detect_prepared(
        self, scan: Scan, prepared: Prepared, at: Point, root: Path | None = None
    ) -> Detection:
        """`detect` of a scan that was prepared with the run's recipe, cut at a point.

        The report names files by their way from `root`, the folder that came in.
        """
        likeness, gate = self.compared(prepared)
        native = self.detector.map(prepared)
        marked, recalled = self.marked(native, at, prepared.scan_from_atlas)
        remembered = recalled.flags if recalled else []
        score = scan_score(native, self.config.calibration.score_fraction)
        report = Report(
            **of_scan(scan, root),
            status="scored",
            notice=NOTICE,
            norma=__version__,
            score=score,
            percentile=percentile_of(score, self.healthy_scores),
            percentile_of=self.healthy_text,
            threshold=at.voxel,
            component_threshold=at.component,
            promise=promise_for(at, gate) or None,
            **findings(
                native,
                marked,
                prepared.scan_from_atlas,
                at,
                self.healthy_strongest(at),
                prepared.organ,
            ),
            model=self.config.name,
            run=shown_path(self.folder, None),
            brain_mask=prepared.brain_method,
            flags=[
                *prepared.flags,
                *gate_flags(gate),
                *flags_of(likeness),
                *self.learned_flags,
                *remembered,
            ],
            typical=likeness,
            gate=gate,
            checks=[c.row() for c in prepared.checks],
            **({"memory": recalled} if recalled else {}),
        )
        mask = like_scan(marked.astype(np.uint8), prepared)
        return Detection(mask, like_scan(native.map, prepared), report)

    def compared(self, prepared: Prepared) -> tuple[list[Compared], Gate | None]:
        """How like the run's own scans one is, feature by feature and as a whole.

        Nothing of either for a run of 0.1.0, which does not describe its scans.
        """
        if not self.typical:
            return [], None
        own = own_features(self.typical, prepared)
        return compare_with(self.typical, own), judge(self.typical, own)

    def marked(
        self, native: NativeMap, at: Point, scan_from_atlas: Map
    ) -> tuple[np.ndarray, Recalled | None]:
        """What a native map marks (bool) at a point, and what the run's memory took from that."""
        if not self.memory:
            return cut(native, at, self.config.postprocess), None
        return recall(self.memory, native, at, self.config.postprocess, scan_from_atlas)

    def reconstruct(self, prepared: Prepared) -> nib.Nifti1Image | None:
        """The model's pseudo-healthy image in [0, 1] on the scan's grid; None if it has none."""
        found = self.detector.reconstruction(prepared.image, prepared.brain)
        return None if found is None else like_scan(to_native(found, prepared).map, prepared)

    @property
    def learned_flags(self) -> list[str]:
        """What a reader must know of the scans that the run has learned from."""
        parts = count_parts(self.history.get("train_scans", []))
        if not parts:
            return []
        return [f"the run learned from slices without lesion of {parts} patients' scans"]

    def point(self, text: str | None = None) -> Point:
        """The operating point that a user names: None (the run's own), "share", "finding=0.05", …

        "fixed=0.3" is a voxel threshold, "fixed=0.3,0.5" one of voxels and one of scans. "oracle"
        has thresholds NaN, which only test scans can fill. InputError for an unknown name, a value
        that is none, or a point that the run cannot give.
        """
        if text is None:
            return self.points[self.config.calibration.point]
        name, values = point_of(text)
        if name == "oracle":
            rule = "chosen with the labels of the test scans: not achievable"
            return Point(point="oracle", rule=rule)
        if values:
            return self._point_at(name, values)
        if name not in self.points:
            why = "no abnormal scan was in split 'tune'"
            if name != "few-label":
                why = "it was trained by an older version of Norma; train it again"
            raise InputError(f"{self.folder}: no {name} point, as {why}.")
        if self.points[name].refused:
            raise InputError(self.points[name].refused)
        return self.points[name]

    def _point_at(self, name: str, values: list[float]) -> Point:
        """A point at the value that a user gives."""
        if name == "fixed":
            scan = values[1] if len(values) > 1 else self.point().scan
            rule = f"fixed at {','.join(f'{value:.10g}' for value in values)} by the caller"
            return Point(point="fixed", rule=rule, voxel=values[0], scan=scan)
        if name == "finding":
            return self._finding_at(values[0])
        if name == "conformal":
            return conformal(self.reference.scans, values[0])
        rule_of = {"quantile": quantile, "share": share}[name]
        return rule_of(self.healthy_voxels, self.healthy_scores, values[0])

    def _finding_at(self, false_alarm: float) -> Point:
        """Point "finding" at another rate of healthy scans with a finding."""
        if "finding" not in self.points:
            raise InputError(
                f"{self.folder}: knows no components of healthy scans; train it again."
            )
        calibration = self.config.calibration.model_copy(update={"false_alarm": false_alarm})
        outline = self.points["finding"].voxel
        return finding(self.reference.scans, outline, calibration, self.reference.left_out)


def like_scan(data: np.ndarray, prepared: Prepared) -> nib.Nifti1Image:
    """`data` with the shape, affine and qform/sform codes of the scan, and nothing else of it.

    A header holds free text (names of patients too), so geometry alone is carried over.
    """
    large = max(data.shape) > np.iinfo(np.int16).max
    image = (nib.Nifti2Image if large else nib.Nifti1Image)(data, prepared.home.affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"Norma {__version__}"
    header = prepared.header
    if header is None:  # a scan of another format
        return image
    for name in ("qform", "sform"):
        code = int(header[f"{name}_code"])
        matrix = getattr(header, f"get_{name}")() if code else prepared.home.affine
        getattr(image, f"set_{name}")(matrix, code, update_affine=False)
    return image


def load_run(run_dir: str | Path, accelerator: str = "auto") -> Run:
    """Read a run folder; InputError names what is missing or damaged, or that it is too new."""
    run_dir = Path(run_dir)
    demand_finished(run_dir)
    demand_own_files(run_dir)
    config = read_config(RunConfig, run_dir / "config.yaml")
    recipe = read_recipe(run_dir)
    device = pick_device(accelerator)
    model = _built(config, recipe, run_dir)
    weights = run_dir / "weights.pt"
    try:
        model.load_state_dict(read_weights(weights))
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(
            f"{weights}: not the weights of this config ({_short_cause(error)})."
        ) from None
    model.eval().to(device)

    stored = _with_key(run_dir / "threshold.json", "points")
    reference = _with_key(run_dir / "reference.json", "scans")
    try:
        points = {name: Point(**values) for name, values in stored["points"].items()}
        healthy = HealthyReference(**reference)
        typical = read_typical(run_dir)
    except (ValidationError, TypeError, AttributeError) as error:
        raise InputError(
            f"{run_dir}: threshold.json, reference.json or typical.json is damaged "
            f"({_first_problem(error)}); train it again with 'make train'."
        ) from None
    detector = Detector(model, config, device)
    run = Run(run_dir, detector, recipe, points, healthy, typical, read_memory(run_dir))
    _check_threshold(run)
    return run


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name; half precision as float32. The file may be compressed (gzip)."""
    content = path.read_bytes()
    if content.startswith(GZIP):
        content = gzip.decompress(content)
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {name: v.float() if v.dtype == torch.float16 else v for name, v in state.items()}


def _built(config: RunConfig, recipe: Recipe, run_dir: Path) -> AnomalyModel:
    """The model of a run, without weights; InputError where its config describes none."""
    try:
        return build_run(config, recipe)
    except ConfigError as error:
        raise ConfigError(f"{run_dir / 'config.yaml'}: {error}") from None
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{run_dir / 'config.yaml'}: describes no model ({_short_cause(error)}); "
            "train it again with 'make train'."
        ) from None


def _check_threshold(run: Run) -> None:
    """InputError for a threshold that would mark nothing or everything, whatever the scan."""
    voxel = run.threshold if run.config.calibration.point in run.points else float("nan")
    silent = not any(run.reference.voxel_quantiles.values())  # a map that is 0 has threshold 0
    if not np.isfinite(voxel) or voxel < 0 or (voxel == 0 and not silent):
        raise InputError(
            f"{run.folder / 'threshold.json'}: threshold {voxel}; expected a finite number above "
            "0; train it again with 'make train'."
        )
    for name, point in run.points.items():
        level = point.component
        known = level is not None and np.isfinite(level) and level >= 0
        if name == "finding" and not known:
            raise InputError(
                f"{run.folder / 'threshold.json'}: component level {level}; expected a finite "
                "number of at least 0; train it again with 'make train'."
            )


def _short_cause(error: Exception) -> str:
    """Why weights cannot be loaded; torch's advice to load them all the same is not repeated."""
    text = str(error)
    if "weights_only" in text or "Unpickling" in text or "pickle" in text.lower():
        return "it holds more than numbers, and Norma loads nothing that could run code"
    return text.splitlines()[0] if text else type(error).__name__


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"'{place}': {first['msg'].lower()}"
    return str(error)


def _with_key(path: Path, key: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or key not in content:
        raise InputError(
            f"{path}: no '{key}' in it, so this is no finished run; train it again with "
            "'make train'."
        )
    return content


def write_calibration(
    run_dir: Path,
    points: dict[str, Point],
    reference: HealthyReference,
    healthy: VoxelHistogram,
    chosen: str,
) -> None:
    """Write threshold.json, reference.json and healthy_voxels.npz; `chosen` is the run's point."""
    write_voxels(healthy, run_dir)
    point = points[chosen]
    threshold = {
        "value": point.voxel,
        **point.as_json(),
        "n_scans": len(reference.scans),
        "points": {name: point.as_json() for name, point in points.items()},
    }
    write_json(run_dir / "threshold.json", threshold)
    write_json(run_dir / "reference.json", reference.model_dump(exclude_unset=True))


def write_weights(model: AnomalyModel, run_dir: Path) -> None:
    """The last file of a run: where it stands, the run is finished.

    Before it run.json gets the digests of all files, that of the weights too.
    """
    buffer = io.BytesIO()
    torch.save({k: v.cpu() for k, v in model.state_dict().items()}, buffer)
    seal(run_dir, {"weights.pt": sha256(buffer.getvalue()).hexdigest()})
    write_atomic(run_dir / "weights.pt", buffer.getvalue())


def write_voxels(healthy: VoxelHistogram, run_dir: Path) -> None:
    """Store the healthy voxels, so that any other healthy operating point can be taken later."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, rows=np.array(healthy.to_rows()))
    write_atomic(run_dir / "healthy_voxels.npz", buffer.getvalue())
