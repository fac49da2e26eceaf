"""What a setting shapes: the digests that must change do, and the others do not."""

import inspect

import pytest
import yaml
from pydantic import create_model

from pipelines.cohort.store import recipe_digest
from pipelines.config import load_recipe, write_yaml
from pipelines.detect import config as configs
from pipelines.detect.config import RunConfig, load_run_config
from pipelines.detect.identity import LEVELS, figures_digest, map_digest, settings
from pipelines.study import protocol as protocols
from pipelines.study.protocol import load_protocol
from preprocessing import recipe as recipes
from preprocessing.recipe import Closed

PLACES = {
    "Augmentation": "augmentation",
    "Loop": "loop",
    "Postprocess": "postprocess",
    "Reference": "reference",
    "Calibration": "calibration",
    "Wrm": "wrm",
    "Harmonise": "harmonise",
}
OPTIONS = ["wrm.gamma=1", "harmonise={given: [0, 1], wanted: [0, 1]}"]  # no run has them unasked


def classes(module):
    """The config classes that a module defines."""
    found = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    return [c for c in found if issubclass(c, Closed) and c.__module__ == module.__name__]


def grown(config, value):
    """The same config with one more field of its class's own level."""
    kind = create_model("Grown", __base__=type(config), fresh=(int, value))
    return kind(**{name: getattr(config, name) for name in type(config).model_fields})


def with_part(run, kind, value):
    """A run's config whose part of class `kind` has one more field, of this value."""
    if kind is RunConfig:
        return grown(run, value)
    if kind.__name__ == "Stage":
        stages = {name: grown(stage, value) for name, stage in run.stages.items()}
        return run.model_copy(update={"stages": stages})
    place = PLACES[kind.__name__]
    return run.model_copy(update={place: grown(getattr(run, place), value)})


@pytest.mark.parametrize("kind", classes(configs), ids=lambda kind: kind.__name__)
def test_a_new_field_changes_its_level_and_those_after_it(kind):
    run = load_run_config("vae_cr", OPTIONS)
    one, two = (with_part(run, kind, value) for value in (1, 2))
    first = LEVELS.index(kind.shapes)
    for i, level in enumerate(LEVELS):
        assert (settings(one, level) != settings(two, level)) == (i >= first), level
    assert (map_digest("w", one, "scan") != map_digest("w", two, "scan")) == (first <= 1)
    assert figures_digest("w", one) != figures_digest("w", two)


def test_a_new_field_of_a_protocol_changes_no_figure_and_its_columns_do():
    (kind,) = classes(protocols)
    protocol = load_protocol("volumes")
    assert kind is type(protocol)
    one, two = (settings(grown(protocol, value), "figures") for value in (1, 2))
    assert one == two
    by_sex = settings(load_protocol("volumes", ["by=[sex]"]), "figures")
    assert by_sex != settings(protocol, "figures")
    assert settings(load_protocol("volumes", ["seeds=2"]), "figures") == settings(
        protocol, "figures"
    )


@pytest.mark.parametrize("kind", classes(recipes), ids=lambda kind: kind.__name__)
def test_a_new_field_of_a_recipe_changes_the_fingerprint(kind):
    recipe = load_recipe("t1+flair")

    def changed(value):
        if kind is type(recipe):
            return grown(recipe, value)
        if kind.__name__ == "Series":
            parts = tuple(grown(series, value) for series in recipe.sequences)
            return recipe.model_copy(update={"sequences": parts})
        place = kind.__name__.lower()
        return recipe.model_copy(update={place: grown(getattr(recipe, place), value)})

    if kind is not Closed:
        assert recipe_digest(changed(1)) != recipe_digest(changed(2))


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ("plane=coronal", "training"),
        ("around=[-1,1]", "training"),
        ("loop.seed=3", "training"),
        ("stages.finetune.lr=0.5", "training"),
        ("reference.holdout=0.2", "training"),
        ("model.beta=0.5", "training"),
        ("reference.kind=z", "map"),
        ("reference.symmetry=1", "map"),
        ("postprocess.median=3", "map"),
        ("postprocess.rim_mm=1", "map"),
        ("calibration.score=cluster", "map"),
        ("postprocess.closing_mm=1", "figures"),
        ("postprocess.min_volume_mm3=1", "figures"),
        ("calibration.quantile=0.9", "figures"),
        ("calibration.context=1", "figures"),
        ("loop.loader_workers=2", "nothing"),
        ("wrm.gamma=2", "training"),
    ],
)
def test_every_setting_shapes_what_it_should(change, level):
    run = load_run_config("vae_cr")
    other = load_run_config("vae_cr", [change])
    first = LEVELS.index(level)
    for i, name in enumerate(LEVELS):
        assert (settings(run, name) != settings(other, name)) == (i >= first), name


def test_options_that_are_left_out_leave_no_trace():
    run = load_run_config("vae_cr")
    other = load_run_config("vae_cr", OPTIONS)
    assert set(settings(other, "map")) - set(settings(run, "map")) == {"wrm", "harmonise"}
    assert "wrm" not in write_yaml(run) and "harmonise" not in write_yaml(run)
    assert RunConfig(**yaml.safe_load(write_yaml(other))) == other


def test_what_a_model_is_scored_by_is_not_what_it_was_trained_by():
    run = load_run_config("vae_kl")
    other = load_run_config("vae_kl", ["model.map=rec"])
    wider = load_run_config("vae_kl", ["model.latent=7"])
    assert settings(run, "training") == settings(other, "training")
    assert settings(run, "training") != settings(wider, "training")
    assert map_digest("w", run, "scan") != map_digest("w", other, "scan")


def test_weights_and_scan_are_part_of_a_map():
    run = load_run_config("vae_cr")
    digests = set()
    for weights in "ab":
        for scan in "cd":
            digests.add(map_digest(weights, run, scan))
    assert len(digests) == 4
