"""Keys of results: whatever shapes a result changes its key, and nothing else does."""

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import BaseModel

from pipelines.cohort.store import fingerprint
from pipelines.config import load_recipe
from pipelines.detect import batch
from pipelines.detect.config import load_run_config
from pipelines.detect.points import Point
from preprocessing.quality import Check
from preprocessing.scans import Scan

RECIPE = load_recipe("t1+flair")
CONFIG = load_run_config("vae_cr")
POINT = Point(point="finding", voxel=0.5, component=0.7, strength="peak", scan=1.0, promise="one")

# settings that cost or save time alone
SPEED = {
    "loop.loader_workers",
}

# what a table or a folder says of a scan, and whether it shapes a result
SHAPES = {"image", "brain_mask", "sequences", "origin", "checks"}
SAYS = {"id", "subject", "split", "label", "pathology", "mask", "slice_labels", "extra", "group"}
SAYS |= {"instances"}

FILES = ("scan.hdr", "scan.img", "flair.nii", "brain.nii", "template.nii", "reference.json")


def changed_value(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return "t2" if value == "flair" else f"{value}x"
    if isinstance(value, dict):
        return {**value, "fresh": 1}
    if isinstance(value, tuple | list):
        return (*value, 7)
    return 1


def variants(config, way=""):
    """(name, changed config) for every setting in a config, however deep."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        place = f"{way}{name}"
        if isinstance(value, BaseModel):
            for inner, other in variants(value, f"{place}."):
                yield inner, config.model_copy(update={name: other})
            continue
        if isinstance(value, dict):
            for key, part in value.items():
                if isinstance(part, BaseModel):
                    for inner, other in variants(part, f"{place}.{key}."):
                        yield inner, config.model_copy(update={name: {**value, key: other}})
                else:
                    other = {**value, key: changed_value(part)}
                    yield f"{place}.{key}", config.model_copy(update={name: other})
        parts = list(value.values()) if isinstance(value, dict) else value
        parts = parts if isinstance(parts, tuple | list) else ()
        for i, part in enumerate(parts):
            if isinstance(part, BaseModel) and isinstance(value, tuple):
                for inner, other in variants(part, f"{place}.{i}."):
                    several = (*value[:i], other, *value[i + 1 :])
                    yield inner, config.model_copy(update={name: several})
        if not any(isinstance(part, BaseModel) for part in parts):
            new = "template.nii" if name == "template" else changed_value(value)
            yield place, config.model_copy(update={name: new})


RECIPES = dict(variants(RECIPE))
CONFIGS = dict(variants(CONFIG))


@pytest.fixture
def scan(tmp_path, monkeypatch):
    """A scan of two sequences with every column filled; its files lie where the test runs."""
    monkeypatch.chdir(tmp_path)
    for name in (*FILES, "other.nii", "t2.nii"):
        Path(name).write_text(name)
    return Scan(
        id="a",
        image=Path("scan.img"),
        subject="a",
        split="test",
        label="healthy",
        pathology="none",
        mask=Path("other.nii"),
        brain_mask=Path("brain.nii"),
        slice_labels=Path("other.nii"),
        extra={"age": "40"},
        sequences={"flair": Path("flair.nii"), "t2": Path("t2.nii")},
        origin={"folder": "p1"},
        checks=(Check("missing slices", 0, high=0),),
        group="g",
    )


@pytest.fixture
def begin(monkeypatch):
    """`begin(scan, ...)`: how `make infer` begins a scan whose report has the key `known`."""

    def call(scan, recipe=RECIPE, config=CONFIG, weights="w", point=POINT, known=None):
        run = SimpleNamespace(
            folder=Path(),
            recipe=recipe,
            config=config,
            weights_digest=weights,
            point=lambda _: point,
        )
        monkeypatch.setattr(batch, "loaded_run", lambda *_: run)
        monkeypatch.setattr(batch, "prepare", lambda *_: "prepared again")
        report = SimpleNamespace(fingerprint=known, scored=False)
        monkeypatch.setattr(batch, "read_report", lambda *_: report)
        return batch.begin_scan(scan, batch.make_job(Path(), Path(), Path()))

    return call


@pytest.fixture
def demand_new(scan, begin):
    """`demand_new(...)`: the scan, changed, is scored again, and unchanged it is not."""
    before = begin(scan).key
    assert begin(scan, known=before).report

    def call(other=scan, new=True, **settings):
        begun = begin(other, known=before, **settings)
        assert (begun.key != before) == new
        assert begun.prepared == ("prepared again" if new else None)

    return call


def changed_scan(scan, name):
    """The scan with another value of one field."""
    other = {
        "image": Path("other.nii"),
        "brain_mask": None,
        "mask": Path("t2.nii"),
        "slice_labels": None,
        "sequences": {"flair": Path("other.nii"), "t2": Path("t2.nii")},
        "checks": (Check("missing slices", 1, high=0),),
    }
    return replace(scan, **{name: other.get(name, changed_value(getattr(scan, name)))})


def test_every_field_of_a_scan_is_told_to_shape_a_result_or_not():
    assert {field.name for field in fields(Scan)} == SHAPES | SAYS


@pytest.mark.parametrize("name", sorted(SHAPES | SAYS))
def test_a_column_changes_the_keys_where_it_shapes_the_result(scan, demand_new, name):
    other = changed_scan(scan, name)
    demand_new(other, new=name in SHAPES)
    assert (fingerprint(other, RECIPE) != fingerprint(scan, RECIPE)) == (name in SHAPES)


@pytest.mark.parametrize("name", FILES)
def test_the_bytes_of_every_file_change_the_keys(scan, begin, name):
    recipe = RECIPE.model_copy(update={"template": "template.nii"})
    one = (begin(scan, recipe).key, fingerprint(scan, recipe))
    again = (begin(scan, recipe).key, fingerprint(scan, recipe))
    assert one == again
    Path(name).write_text(name.upper())
    two = (begin(scan, recipe).key, fingerprint(scan, recipe))
    assert one[0] != two[0]
    # the healthy reference belongs to a run, and no preprocessed scan knows of it
    assert (one[1] != two[1]) == (name != "reference.json")


def test_a_template_that_moved_is_the_same_template(scan, begin):
    Path("moved.nii").write_text("template.nii")
    recipes = [RECIPE.model_copy(update={"template": n}) for n in ("template.nii", "moved.nii")]
    one, two = (begin(scan, recipe).key for recipe in recipes)
    assert one == two


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_a_recipe_changes_the_keys(scan, demand_new, name):
    recipe = RECIPES[name]
    if len(recipe.sequences) == len(RECIPE.sequences):
        demand_new(recipe=recipe)
        assert fingerprint(scan, recipe) != fingerprint(scan, RECIPE)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_of_a_run_changes_the_key(demand_new, name):
    demand_new(config=CONFIGS[name], new=name not in SPEED)


def test_every_part_of_the_operating_point_and_the_weights_change_the_key(demand_new):
    for change in ({"voxel": 0.6}, {"component": 0.8}, {"strength": "mass"}, {"promise": "none"}):
        demand_new(point=POINT.model_copy(update=change))
    demand_new(weights="v")
