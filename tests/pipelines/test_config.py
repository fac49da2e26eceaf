"""Configs are closed and typed; every YAML of configs/ builds its model.

Errors name the key and the nearest spelling.
"""

import re

import pytest

from models import model_names
from pipelines.config import (
    CONFIGS,
    ConfigError,
    load_recipe,
    merge,
    names,
    read_yaml,
    validate,
    write_yaml,
)
from pipelines.detect.build import build_model
from pipelines.detect.config import RunConfig, Stage, load_run_config
from preprocessing.recipe import Recipe


def refused(message):
    return pytest.raises(ConfigError, match=f"^{message}")


# names


def test_unknown_names_are_refused_with_the_nearest_spelling():
    with refused(r"unknown MODEL 'vae_rc'; known: .*\bvae_cr\b.*; did you mean 'vae_cr'\?$"):
        load_run_config("vae_rc")
    with refused(
        r"unknown MODALITY 'flare'; known: chest_ct, ct, flair, fundus, picture, t1, t2; "
        r"did you mean 'flair'\?$"
    ):
        load_recipe("flare")
    with refused(r"unknown PRESET 'smal'; known: .*\bsmall\b.*; did you mean 'small'\?$"):
        load_run_config("vae_cr", preset="smal")
    with refused(r"unknown MODEL 'xyz'; known: [a-z0-9_, ]+$"):
        load_run_config("xyz")  # nothing is near: no hint
    with refused(r"unknown MODEL '\.\./configs/vae_cr'"):
        load_run_config("../configs/vae_cr")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lop.seed=1", r"unknown key 'lop'; known: name, .*\bloop\b.*; did you mean 'loop'\?"),
        (
            "loop.sead=1",
            r"unknown key 'loop\.sead'; known: seed, batch_size, .*; did you mean 'seed'\?",
        ),
        (
            "stages.finetune.max_epoch=1",
            r"unknown key 'stages\.finetune\.max_epoch'; known: max_epochs, lr.*; "
            r"did you mean 'max_epochs'\?",
        ),
        (
            "calibration.quantil=0.9",
            r"unknown key 'calibration\.quantil'; known: "
            r"folds, point, strength, outline, quantile, false_alarm, share, score, "
            r"score_fraction, context; "
            r"did you mean 'quantile'\?",
        ),
        ("loop.zzz=1", r"unknown key 'loop\.zzz'; known: [a-z_, ]+$"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_spelling(override, message):
    with refused(rf".*vae_cr\.yaml: {message}"):
        load_run_config("vae_cr", [override])


def test_unknown_recipe_key_and_every_problem_at_once():
    with refused(
        r".*t1\.yaml: unknown key 'limits\.min_overlp'; "
        r"known: brain_ml, min_overlap, min_information, min_pose_ratio, max_gb; "
        r"did you mean 'min_overlap'\?"
    ):
        load_recipe("t1", ["limits.min_overlp=0.5"])
    with pytest.raises(ConfigError) as found:
        load_recipe("t1", ["spacing=0", "brain=skull", "nn4=true"])
    text = str(found.value)
    assert "'spacing': input should be greater than 0, got 0" in text
    assert "'brain': input should be 'auto', 'deepbet', 'bet' or 'none', got 'skull'" in text
    assert "unknown key 'nn4'" in text and "did you mean 'n4'?" in text


# types


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "loop.batch_size=many",
            r"'loop\.batch_size': input should be a valid integer.*got 'many'",
        ),
        (
            "loop.batch_size=0",
            r"'loop\.batch_size': input should be greater than or equal to 1, got 0",
        ),
        ("loop.seed=-1", r"'loop\.seed': input should be greater than or equal to 0, got -1"),
        ("loop.seed=1.5", r"'loop\.seed': input should be a valid integer.*got 1\.5"),
        (
            "loop.precision=64",
            r"'loop\.precision': input should be '32-true', '16-mixed' or 'bf16-mixed', got 64",
        ),
        ("image_size=[64]", r"'image_size': tuple should have at least 2 items"),
        ("image_size=[64,64,64,64]", r"'image_size': tuple should have at most 3 items"),
        ("stages.finetune=5", r"'stages\.finetune': input should be a valid dictionary .*, got 5"),
        (
            "stages.finetune.lr=null",
            r"'stages\.finetune\.lr': input should be a valid number, got None",
        ),
        (
            "stages.finetune.lr=-1",
            r"'stages\.finetune\.lr': input should be greater than 0, got -1",
        ),
        ("calibration.quantile=1", r"'calibration\.quantile': input should be less than 1, got 1"),
        (
            "augmentation.flip=2",
            r"'augmentation\.flip': input should be less than or equal to 1, got 2",
        ),
        ("model=3", r"'model': input should be a valid dictionary, got 3"),
    ],
)
def test_wrong_types_name_the_key_and_what_was_got(override, message):
    with refused(rf".*vae_cr\.yaml: {message}"):
        load_run_config("vae_cr", [override])


def test_configs_are_frozen():
    config = load_run_config("vae_cr")
    with pytest.raises(ValueError, match="frozen"):
        config.loop.seed = 3


# overrides


def test_overrides_reach_nested_keys_numbers_lists_and_null():
    changes = [
        "stages.finetune.max_epochs=7",
        "stages.pretrain.lr=1e-4",
        "loop.gradient_clip=null",
        "image_size=[64, 96]",
    ]
    changes += [
        "model.channels=[4,4,8]",
        "model.beta=0.5",
        "loop.accelerator=cpu",
        "loop.seed=1",
        "loop.seed=2",
    ]
    config = load_run_config("vae_cr", changes)
    plain = load_run_config("vae_cr")
    assert (
        config.stages["finetune"].max_epochs == 7
        and config.stages["finetune"].lr == plain.stages["finetune"].lr
    )
    assert config.stages["pretrain"].lr == 1e-4
    assert config.loop.gradient_clip is None and plain.loop.gradient_clip == 1.0
    assert config.image_size == (64, 96)
    assert config.model == plain.model | {"channels": [4, 4, 8], "beta": 0.5}
    assert config.loop.accelerator == "cpu" and config.loop.seed == 2  # the last one counts
    assert config.name == "vae_cr" and config.postprocess == plain.postprocess
    assert load_recipe(
        "t1", ["n4=true", "grid=[null,200,180]", "brain=none"]
    ).model_dump() == load_recipe("t1").model_dump() | {
        "n4": True,
        "grid": (None, 200, 180),
        "brain": "none",
    }


def test_merge_changes_a_copy_and_makes_what_is_missing():
    values = {"a": {"b": 1}, "c": 2}
    assert merge(values, ["a.b=5", "a.x.y=[1, two]", "d=", "e=a=b"]) == {
        "a": {"b": 5, "x": {"y": [1, "two"]}},
        "c": 2,
        "d": None,
        "e": "a=b",
    }
    assert values == {"a": {"b": 1}, "c": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loop.seed", r"'loop\.seed': expected key=value, such as stages\.finetune\.max_epochs=50"),
        ("=3", r"'=3': expected key=value"),
        ("image_size.0=3", r"'image_size\.0=3': 'image_size' holds a value, not keys"),
        ("loop.seed=[1", r"'loop\.seed=\[1': the value is not readable as YAML"),
        ("loop.seed={a: b: c}", r"'loop\.seed=\{a: b: c\}': the value is not readable as YAML"),
    ],
)
def test_overrides_that_are_none_are_refused(text, message):
    with refused(message):
        load_run_config("vae_cr", [text])


def test_a_preset_lies_under_the_overrides_and_over_the_model(tmp_path, monkeypatch):
    (tmp_path / "preset").mkdir()
    (tmp_path / "vae_cr.yaml").write_text((CONFIGS / "vae_cr.yaml").read_text())
    (tmp_path / "preset/slow.yaml").write_text(
        "all: {loop: {batch_size: 7}}\n"
        "vae_cr: {model: {beta: 0.5}, stages: {finetune: {max_epochs: 1}}}\n"
        "other: {model: {beta: 9}}\n"
    )
    monkeypatch.setattr("pipelines.detect.config.CONFIGS", tmp_path)
    plain = load_run_config("vae_cr")
    slow = load_run_config("vae_cr", preset="slow")
    assert slow.loop.batch_size == 7 != plain.loop.batch_size and slow.model == plain.model | {
        "beta": 0.5
    }
    assert slow.stages["finetune"] == plain.stages["finetune"].model_copy(update={"max_epochs": 1})
    assert (
        slow.stages["pretrain"] == plain.stages["pretrain"]
        and slow.augmentation == plain.augmentation
    )
    both = load_run_config("vae_cr", ["loop.batch_size=3"], "slow")
    assert both.loop.batch_size == 3 and both.model["beta"] == 0.5


# files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not readable as YAML"),
        (b"- 1\n", "expected keys and values, got list"),
        (b"\xff\xfe\x00", "not readable as YAML"),
    ],
)
def test_files_that_are_no_config_are_refused(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with refused(f"{re.escape(str(path))}: {message}"):
        read_yaml(path)
    with refused(rf"{re.escape(str(tmp_path))}/absent\.yaml: no such file\.$"):
        read_yaml(tmp_path / "absent.yaml")


def test_a_config_that_was_written_reads_back_equal(tmp_path):
    changes = [
        "loop.gradient_clip=null",
        "model.channels=[4,4,8]",
        "stages.finetune.lr=1e-5",
        "stages.pretrain.steps_per_epoch=3",
    ]
    config = load_run_config("vae_cr", changes)
    (tmp_path / "config.yaml").write_text(write_yaml(config))
    assert validate(RunConfig, read_yaml(tmp_path / "config.yaml"), "x") == config
    recipe = load_recipe(
        "ct", ["grid=[null,200,180]", "n4=true"], template=str(tmp_path / "t.nii.gz")
    )
    (tmp_path / "recipe.yaml").write_text(write_yaml(recipe))
    assert validate(Recipe, read_yaml(tmp_path / "recipe.yaml"), "x") == recipe
    assert recipe.template == str(tmp_path / "t.nii.gz")


@pytest.mark.parametrize("name", names(CONFIGS / "modality"))
def test_every_modality_loads_and_is_called_by_its_file(name):
    recipe = load_recipe(name)
    kind = "picture" if name == "fundus" else name  # pictures of two planes
    assert recipe.modality == kind and recipe.intensity.low < recipe.intensity.high
    assert recipe.intensity.kind == (
        "window" if name in ("ct", "picture", "chest_ct") else "percentiles"
    )
    assert validate(Recipe, read_yaml(CONFIGS / f"modality/{name}.yaml"), name) == recipe


def test_every_model_has_its_yaml():
    assert names(CONFIGS) == model_names()


@pytest.mark.parametrize("preset", [None, *names(CONFIGS / "preset")])
@pytest.mark.parametrize("name", names(CONFIGS))
def test_every_config_builds_its_model(name, preset):
    config = load_run_config(name, preset=preset)
    runs = config.model.get(
        "members"
    )  # of the ensemble: runs of the same preset, here as `with_members` finds them
    if runs:
        own = [
            {"run": run, "config": load_run_config(run, preset=preset).model_dump(mode="json")}
            for run in runs
        ]
        config = config.model_copy(update={"model": config.model | {"members": own}})
    model = build_model(config)
    assert type(model).__module__ == f"models.{name}" and tuple(config.stages) == tuple(
        model.stages
    )


# the model's own arguments


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.chanels=[4,8]",
            r"unknown key 'chanels'; known: in_channels, channels, patch_fraction, beta; "
            r"did you mean 'channels'\?",
        ),
        ("model.beta=high", r"'beta': input should be a valid number.*got 'high'"),
        ("model.channels=8", r"'channels': input should be .*sequence.*got 8"),
        ("model.channels=[4,x]", r"'channels\.1': input should be a valid integer.*got 'x'"),
        (
            "model.channels=[4,5]",
            r"channels: the last entry is split into mean and log-variance and must be even, got 5",
        ),
    ],
)
def test_wrong_model_arguments_are_named(override, message):
    with refused(f"model of vae_cr: {message}"):
        build_model(load_run_config("vae_cr", [override]))


def test_a_missing_and_an_extra_stage_are_refused():
    config = load_run_config("vae_cr")
    without = config.model_copy(update={"stages": {"finetune": config.stages["finetune"]}})
    with refused(r"stages of 'vae_cr' are pretrain, finetune; the config has finetune\.$"):
        build_model(without)
    with refused(
        r"stages of 'vae_cr' are pretrain, finetune; the config has pretrain, finetune, polish\.$"
    ):
        build_model(
            load_run_config("vae_cr", ["stages.polish.max_epochs=1", "stages.polish.lr=0.1"])
        )
    with refused(r".*vae_cr\.yaml: 'stages\.finetun\.lr': field required"):
        load_run_config("vae_cr", ["stages.finetun.max_epochs=1"])
    assert build_model(
        config.model_copy(
            update={"stages": dict.fromkeys(("finetune", "pretrain"), Stage(max_epochs=1, lr=1))}
        )
    )
