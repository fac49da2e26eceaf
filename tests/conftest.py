"""Shared fixtures: a small oblique brain scan, an untrained run, commands as a user runs them."""

import gc
import importlib
import logging
import os
import sys
from collections import Counter
from dataclasses import dataclass

# before the heavy imports; what the caller has set stays
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import nibabel as nib
import numpy as np
import pytest

from tests.shared import draw_nothing, make_chain, make_pictures, own_copy

gc.set_threshold(100_000)  # as commands do, see pipelines/cli.py


def case_of(name, data, **columns):
    """A case of a cohort in `data`, from a row of scans.tsv as `make preprocess` writes it."""
    from pipelines.cohort.cases import Case

    row = {
        "id": name,
        "image": f"{name}.nii.gz",
        "subject": name,
        "preproc": f"{name}_preproc.nii.gz",
        "brain": f"{name}_brain.nii.gz",
        "sidecar": f"{name}_preproc.json",
    }
    return Case.from_row(row | columns, data)


QUICK = [
    "spacing=2",
    "registration_spacing=6",
    "grid=[160,200,160]",
    "limits.min_pose_ratio=0",
]  # a coarse fit on a tight grid, no other poses looked at: still a real registration
HEALTHY = [0.11, 0.12, 0.13, 0.14, 0.15]
HINTS = ("left out: ", "not scored: ", "Splits by subject were made here", "Scans without a label")


def oblique_affine(shape, zooms, centre, degrees=8.0):
    """Affine of an LPS array turned about the left-right axis; its centre lies at `centre` mm."""
    angle = np.deg2rad(degrees)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-zooms[0], -zooms[1], zooms[2]])
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


@pytest.fixture(scope="session")
def brain_t1(tmp_path_factory):
    """Path of a brain-only T1 scan: the ICBM152 brain at 0.93 of its size.

    int16, 2 x 2.5 x 3 mm, oblique, LPS.
    """
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
    from scipy import ndimage

    template = load_mni152_template(resolution=2)
    brain = load_mni152_brain_mask(resolution=2)
    centre = template.affine[:3, :3] @ ((np.array(template.shape) - 1) / 2) + template.affine[:3, 3]
    shape = (88, 80, 58)
    affine = oblique_affine(shape, (2.0, 2.5, 3.0), centre)
    grow = np.eye(4)
    grow[:3, :3] /= 0.93
    grow[:3, 3] = centre - grow[:3, :3] @ centre
    matrix = np.linalg.inv(template.affine) @ grow @ affine
    data, inside = (
        ndimage.affine_transform(
            image.get_fdata(dtype=np.float32), matrix[:3, :3], matrix[:3, 3], shape, order=1
        )
        for image in (template, brain)
    )
    data *= inside > 0.5  # interpolation would leave a brain that is 2 mm too wide
    image = nib.Nifti1Image(np.round(data / data.max() * 1000).astype(np.int16), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    path = tmp_path_factory.mktemp("scan") / "sub-01_T1w.nii.gz"
    nib.save(image, path)
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run folder as pipelines/train.py writes it.

    Untrained tiny weights, threshold 0.2, five healthy scores.
    """
    import torch

    from pipelines.config import load_recipe, write_yaml
    from pipelines.detect.build import build_model
    from pipelines.detect.config import load_run_config
    from pipelines.detect.run import write_weights
    from preprocessing.files import write_json

    folder = tmp_path_factory.mktemp("run") / "vae_cr"
    folder.mkdir()
    settings = ["model.channels=[4,4,8]", "image_size=[32,32]", "calibration.point=quantile"]
    settings += ["postprocess.median=0"]  # which takes half the time of a scan
    config = load_run_config("vae_cr", settings)
    torch.manual_seed(0)
    model = build_model(config)
    (folder / "config.yaml").write_text(write_yaml(config))
    (folder / "recipe.yaml").write_text(write_yaml(load_recipe("t1", QUICK)))
    point = {"point": "quantile", "rule": "set by hand for the tests", "voxel": 0.2, "scan": 0.15}
    write_json(
        folder / "threshold.json", {"value": 0.2, "n_scans": 5, "points": {"quantile": point}}
    )
    reference = {
        "score": "mean of the highest 1.0% of the map inside the brain",
        "scans": [
            {"id": f"healthy-{i}", "score": score, "maximum": 2 * score}
            for i, score in enumerate(HEALTHY)
        ],
        "voxel_quantiles": {str(q): q / 5 for q in (0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)},
    }
    write_json(folder / "reference.json", reference)
    write_weights(model, folder)
    return folder


SLOW = {"chain", "pictures", "brain_t1", "bad_scans", "pairs", "trained", "brief"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What works on a prepared scan or a trained run is slow: `make test-fast` leaves it out.

    Files with the most slow tests come first, so that no worker sits idle while the other ends.
    """
    slow = Counter()
    for item in items:
        if SLOW.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        slow[item.path] += item.get_closest_marker("slow") is not None
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module")
def no_figures():
    """No figure is drawn in a module whose first fixture this is."""
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        yield


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """A virtual cohort of four heads (`cohort`), preprocessed (`data`), and a trained `run`."""
    return own_copy(tmp_path_factory, "chain", make_chain)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Thirty pictures of heads with their table (`raw`), and preprocessed (`heads`)."""
    return own_copy(tmp_path_factory, "pictures", make_pictures)


@pytest.fixture(scope="session")
def _prepared():
    return {}


@pytest.fixture
def quick_prepare(monkeypatch, _prepared):
    """Let `prepare` work once per image and recipe in a session; it fails again in the same way."""
    from pipelines.cohort import store
    from pipelines.detect import batch
    from pipelines.detect import run as runs
    from preprocessing.files import file_digest
    from preprocessing.scans import ScanError

    real = store.prepare

    def prepare(scan, recipe):
        if not scan.image.is_file() or scan.brain_mask or scan.sequences:
            return real(scan, recipe)
        key = (file_digest(scan.image), recipe.model_dump_json())
        failed = (scan.image, *key)  # its sentence names the file
        if failed in _prepared:
            raise _prepared[failed]
        if key not in _prepared:
            try:
                _prepared[key] = real(scan, recipe)
            except ScanError as error:
                _prepared[failed] = error
                raise
        return _prepared[key]

    for module in (store, batch, runs):
        monkeypatch.setattr(module, "prepare", prepare)
    return prepare


@dataclass
class Done:
    """What a command left behind: its exit code and the two streams."""

    code: int
    out: str
    err: str

    @property
    def sentences(self):
        """Lines of stderr without progress bars."""
        return [
            line for line in self.err.splitlines() if line.strip() and "%|" not in line
        ]  # a carriage return ends a line too

    @property
    def error(self):
        """The one error sentence; fails where there is none, more than one, or a traceback."""
        assert "Traceback" not in self.err, self.err
        found = [line for line in self.sentences if line.startswith("error: ")]
        assert len(found) == 1, self.err
        rest = [line for line in self.sentences if line not in found and not line.startswith(HINTS)]
        assert [
            line for line in rest if not line.endswith("already skull-stripped, taken as it is")
        ] == [], self.err
        return found[0]


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("infer", "--run", ...)`: `python -m pipelines.<verb>` in this process."""
    import torch  # noqa: F401 (where it is loaded, infer prepares no scan in another process)

    from pipelines import cli

    def call(verb, *arguments):
        module = importlib.import_module(f"pipelines.{verb}")
        monkeypatch.setattr(sys, "argv", [f"pipelines.{verb}", *map(str, arguments)])
        root = logging.getLogger()
        before = root.handlers[:]
        level = root.level
        root.handlers.clear()  # logging goes to the stderr of this test, as in a fresh process
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as left:
                cli.run(module.main, module.build_parser())
        finally:
            root.handlers[:] = before
            root.setLevel(level)
        text = capsys.readouterr()
        return Done(left.value.code, text.out, text.err)

    return call


@pytest.fixture
def left_behind():
    """Names of temporary files below a folder that nobody removed."""
    return lambda folder: sorted(str(p.relative_to(folder)) for p in folder.rglob(".tmp-*"))
