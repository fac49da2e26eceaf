"""Every command of `make reproduce` is one that Norma takes."""

import shlex
from itertools import product
from pathlib import Path

import pytest

from benchmarks.halves import LOT, MEASURES
from benchmarks.reproduce import choose_commands, commands, overrides
from evaluation.shifts import SHIFTS
from pipelines import choose, compare, train
from pipelines.config import ROOT, load_recipe, read_yaml
from pipelines.detect.config import load_run_config
from pipelines.detect.identity import settings
from pipelines.detect.typical import FEWEST
from pipelines.pages.results import CHOICES as CHOICES_FILE
from pipelines.study.compare import configs as configs_of
from pipelines.study.plant import kinds_of, volumes_of
from pipelines.training.adapt import WAYS
from preprocessing.files import read_json

PLANS = read_yaml(ROOT / "benchmarks" / "reproduce.yaml")


@pytest.mark.parametrize("full", [False, True])
def test_every_comparison_has_models_settings_and_data_that_exist(full):
    listed = commands(PLANS, Path("sets"), None, full)
    made = {
        c[c.index("--out") + 1]
        for c in listed
        if c[0] in ("pipelines.preprocess", "pipelines.synthesise")
    }
    names = set()
    trained = {}
    shared = {}
    for command in listed:
        if command[0] == "pipelines.preprocess":
            overrides = [part for part in command[1:] if "=" in part]
            load_recipe(command[command.index("--modality") + 1], overrides)
        if command[0] == "pipelines.compare":
            arguments = compare.build_parser().parse_args(command[1:])
            models = arguments.models.split()
            configs = configs_of(models, arguments.overrides, None)
            assert list(configs) == models and (arguments.baseline in models)
            assert {arguments.data, arguments.test or arguments.data} <= made
            assert len({str(c) for c in configs.values()}) == len(models), (
                "two variants are the same"
            )
            # a folder of runs holds one run of a name, and refuses another
            for model, config in configs.items():
                place = (arguments.out, arguments.protocol == "kfold", model)
                held = settings(config, "figures")
                assert shared.setdefault(place, held) == held, f"{place}: other settings"
            names.add(arguments.name or Path(arguments.test or arguments.data).name)
        if command[0] == "pipelines.train":
            arguments = train.build_parser().parse_args(command[1:])
            trained[arguments.out] = load_run_config(arguments.model, arguments.overrides)
            assert {
                str(Path(arguments.out).parent / m)
                for m in trained[arguments.out].model.get("members", [])
            } <= set(trained)
        if command[0] == "pipelines.choose":
            arguments = choose.build_parser().parse_args(command[1:])
            ranked = [trained[run] for run in arguments.runs]
            assert (
                len({str(c) for c in ranked}) == len(ranked)
                and kinds_of(arguments.kinds)
                and volumes_of(arguments.volumes)
            )
            names.add(Path(arguments.out).stem)
    assert names == {*PLANS["compare"], *PLANS["choose"]}
    assert listed[-1][0] == "pipelines.results" and set(listed[-1][2::2]) >= {
        *(f"work/{name}" for name in (*PLANS["preprocess"], *PLANS["synthesise"]))
    }


def test_each_adaptation_trains_on_its_own_scans_and_adapts_to_others():
    for name, plan in PLANS["adaptation"].items():
        listed = commands(PLANS, Path("sets"), name, False)
        halved = [c for c in listed if c[0] == "benchmarks.halves"]
        table = halved[0][-1] if halved else None
        assert [c[c.index("--by") + 1] for c in halved] == ([plan["by"]] if table else [])
        assert bool(table) != ("site" in plan) and plan.get("by") in {None, LOT, *MEASURES}
        shifts = plan.get("shifts", [])
        raw = [c[c.index("--out") + 1] for c in listed if c[0] == "benchmarks.shifted"]
        made = {c[2]: c[c.index("--out") + 1] for c in listed if c[0] == "pipelines.preprocess"}
        own = f"work/{plan.get('site', plan['data'])}"
        targets = {own, *(made[f"{folder}/cohort.tsv"] for folder in raw)}
        assert len(targets) == 1 + len(shifts) and set(shifts) <= set(SHIFTS)
        assert {own, f"work/{plan['data']}"} <= set(made.values())
        used = set()
        trained = {}
        for command in listed:
            if command[0] == "pipelines.train":
                arguments = train.build_parser().parse_args(command[1:])
                load_run_config(arguments.model, arguments.overrides, arguments.preset)
                trained[arguments.out] = arguments.splits
            if command[0] == "benchmarks.adaptation":
                ways = command[command.index("--ways") + 1 : command.index("--counts")]
                assert set(ways) <= {"calibration", *WAYS}
                target = command[command.index("--target") + 1]
                used.add(target)
                if target == f"work/{plan['data']}":
                    assert command[command.index("--splits") + 1] == table
                assert trained[command[2]] == table
        assert len(trained) == len(plan["runs"]) and used == targets


@pytest.mark.parametrize("name", PLANS["adaptation"])
def test_the_committed_adaptations_are_the_planned_ones(name):
    measured = read_json(CHOICES_FILE.parent / "adaptation.json")["runs"]
    plan = PLANS["adaptation"][name]
    targets = {"": (plan.get("site", plan["data"]), None if "site" in plan else f"{name}.tsv")}
    for shift in plan.get("shifts", []):
        written = f"_{shift.replace(' ', '_')}"
        targets[written] = (f"{name}{written}", None)
    for (model, own), (shift, target) in product(plan["runs"].items(), targets.items()):
        entry = measured[f"{name}_{model}{shift}"]
        assert (entry["target"], entry["splits"]) == target
        assert entry["most_held_out"] == plan["held_out"]
        assert ",".join(entry["kinds"]) == plan["kinds"]
        assert entry["volumes_ml"] == [float(v) for v in plan["volumes"].split(",")]
        wanted = set()
        for asked in own["measured"]:
            rows = product(("none", *asked["ways"]), asked["counts"], range(asked["draws"]))
            wanted |= {row for row in rows if row[0] != "calibration" or row[1] >= FEWEST}
        assert {(row["how"], row["k"], row["draw"]) for row in entry["rows"]} == wanted


def test_one_comparison_takes_its_own_data_alone():
    listed = commands(PLANS, Path("sets"), "open_ms", False)
    prepared = {c[c.index("--out") + 1] for c in listed if c[0] == "pipelines.preprocess"}
    assert (
        prepared == {"work/ds002748", "work/open_ms"}
        and sum(c[0] == "pipelines.compare" for c in listed) == 1
    )


def test_the_full_budget_keeps_settings_and_drops_what_two_cores_bear():
    def comparison(full):
        listed = commands(PLANS, Path("sets"), "ct_ich", full)
        return next(set(c) for c in listed if c[0] == "pipelines.compare")

    short = comparison(False)
    full = comparison(True)
    assert full < short and "vae_cr.stages.finetune.max_epochs=7" in short - full
    assert "vae_cr@z.reference.kind=z" in full


CHOICES = read_yaml(CHOICES_FILE)["choices"]


@pytest.mark.parametrize("choice", CHOICES, ids=[c["command"] for c in CHOICES])
def test_what_is_recommended_is_what_was_measured(choice):
    """`make train <command>` has the settings of the run beside it, and so has each member."""
    plan = PLANS["compare"][choice["measured"]]
    given = dict(part.split("=", 1) for part in shlex.split(choice["command"]))
    settings = overrides(plan["settings"], plan["models"]) + overrides(
        plan["budget"], plan["models"]
    )
    measured = configs_of(plan["models"], settings, None)

    def asked(model):
        return load_run_config(model, given.get("ARGS", "").split(), given.get("PRESET"))

    pairs = [(asked(given["MODEL"]), measured[choice["model"]])]
    members = [c.model.pop("members", []) for c in pairs[0]]
    pairs += [(asked(a), measured[b]) for a, b in zip(*members, strict=True)]
    for own, theirs in pairs:
        # without training, slices at a time change nothing
        loop = {"seed", "loader_workers"} if own.stages else True
        assert own.model_dump(exclude={"loop": loop}) == theirs.model_dump(exclude={"loop": loop})


@pytest.mark.parametrize("name", PLANS["choose"])
def test_the_committed_rankings_are_of_the_listed_runs(name):
    """What ranked is what `make reproduce` trains and ranks, with the same lesions."""
    ranking = read_json(CHOICES_FILE.parent / f"{name}.json")
    plan = PLANS["choose"][name]
    listed = choose_commands(name, plan, False)
    assert ranking["data"] == plan["data"] and ",".join(ranking["kinds"]) == plan["kinds"]
    assert ranking["volumes_ml"] == [float(v) for v in plan["volumes"].split(",")]

    def config(command):
        arguments = train.build_parser().parse_args(command)
        return arguments.out, load_run_config(arguments.model, arguments.overrides)

    assert dict(config(e["trained_by"]) for e in ranking["entries"]) == dict(
        config(c[1:]) for c in listed[:-1]
    )


def test_the_small_ct_ensemble_is_the_recommended_one_with_less_memory():
    presets = [read_yaml(ROOT / "configs" / "preset" / f"{n}.yaml") for n in ("ct", "ct_small")]
    large, small = (preset.pop("patchcore") for preset in presets)
    presets[0].pop("intensity")  # a baseline, and no member
    assert presets[0] == presets[1] and large["reference"] == small["reference"]
    assert small["model"]["memory"] < large["model"]["memory"]
