"""Everything that docs/results.md is made of, in one command: `python -m benchmarks.reproduce`.

It reads benchmarks/reproduce.yaml, prints each command and runs it: tables, preprocessing,
synthetic lesions, the ranking behind each default, comparisons, results page. What is done already
is not done again.

`--data` is the folder of the public sets. `--only NAME` takes one comparison or ranking, with
"ready" the ready-made runs, with "calibration" what `make calibrate` and `make adapt` do on another
scanner; or one adaptation, such as "soop_contrast": what each way of `make adapt` brings there.
`--budget full` takes the models' own epochs, for a machine with a GPU. `--dry-run` prints alone.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines import cli
from pipelines.config import ROOT, read_yaml
from pipelines.study.compare import kind_of

Plans = dict[str, Any]
Command = list[str]


def overrides(settings: dict[str, dict[str, Any]], models: list[str]) -> list[str]:
    """Return "model.key=value" of every setting that concerns one of the models."""
    concerned = {"all", *models, *(kind_of(model) for model in models)}
    listed: list[str] = []
    for model, values in settings.items():
        if model in concerned:
            listed += [f"{model}.{key}={value}" for key, value in values.items()]
    return listed


def compare_command(name: str, plan: Plans, full: bool) -> Command:
    """Return the command of one comparison.

    Its runs are shared with every other comparison on that data, unless it has a folder of its own.
    """
    command = ["pipelines.compare", "--data", f"work/{plan['data']}"]
    command += ["--models", " ".join(plan["models"]), "--out", runs_of(plan)]
    if "test" in plan:
        command += ["--test", f"work/{plan['test']}"]
    if name != plan.get("test", plan["data"]):
        command += ["--name", name]
    for key in ("protocol", "seeds", "repeats", "baseline"):
        if key in plan:
            command += [f"--{key}", str(plan[key])]
    if "choose" in plan:
        command += ["--choose", *plan["choose"]]
    command += overrides(plan["settings"], plan["models"])
    return command if full else command + overrides(plan["budget"], plan["models"])


def runs_of(plan: Plans) -> str:
    """Return the folder for the runs of a comparison: runs/<data>, or its own below runs."""
    return f"runs/{plan.get('runs', plan['data'])}"


def choose_commands(name: str, plan: Plans, full: bool) -> list[Command]:
    """Return the trainings of one ranking, in runs/<name>, and the ranking itself."""
    data = ["--data", f"work/{plan['data']}"]
    run_dirs = {run: f"runs/{name}/{run}" for run in plan["runs"]}
    listed: list[Command] = []
    for run, settings in plan["runs"].items():
        values = dict(settings)
        if not full:
            values |= plan["budget"].get(settings["model"], {})
        model = values.pop("model")
        command = ["pipelines.train", *data, "--out", run_dirs[run], "--model", model]
        listed.append([*command, *(f"{key}={value}" for key, value in values.items())])

    command = ["pipelines.choose", *data, "--kinds", plan["kinds"], "--volumes", plan["volumes"]]
    command += ["--out", f"docs/results/{name}.tsv", "--runs", *run_dirs.values()]
    return [*listed, command]


def ready_commands(name: str, plan: Plans) -> list[Command]:
    """Return the commands that make one ready-made run: training, a small copy, its card.

    Of several models the last, an ensemble of the others, is the run. The card has the figures of
    the run on test scans, and those of its settings in a comparison, where there is one.
    """
    data = ["--data", f"work/{plan['data']}"]
    splits = ["--splits", f"work/tables/ready_{plan['data']}.tsv"]
    listed: list[Command] = []
    run_dir = f"runs/ready/{name}"
    for model in plan["models"]:
        if len(plan["models"]) > 1:  # an ensemble finds its members beside it
            run_dir = f"runs/ready/{name}/{model}"
        trained = ["pipelines.train", *data, "--model", model, "--preset", plan["preset"]]
        listed.append([*trained, "--out", run_dir, *splits])

    packed = f"ready/{name}"
    evaluated = f"runs/ready_{name}"
    tested = ["--data", f"work/{plan['test']}"]
    measured: Command = []
    if "results" in plan:
        measured = ["--results", f"docs/results/{plan['results']}", "--model", plan["as"]]
    if plan.get("larger"):
        measured.append("--larger")
    return [
        *listed,
        ["pipelines.pack", *data, "--run", run_dir, "--out", packed, "--ready", name],
        ["pipelines.evaluate", "--run", run_dir, *tested, "--out", evaluated],
        ["pipelines.card", "--run", packed, "--evaluation", evaluated, *measured],
    ]


def calibration_commands(plan: Plans) -> list[Command]:
    """Return the commands that show what healthy scans of another scanner are good for."""
    site = ["--data", f"work/{plan['site']}"]
    parent = f"runs/ready/{plan['site']}"
    trained = ["pipelines.train", *site, "--model", plan["model"], "--preset", plan["preset"]]
    shown = ["benchmarks.calibration", "--run", plan["run"], "--site", f"work/{plan['site']}"]
    shown += ["--parent", parent, "--data", f"work/{plan['data']}"]
    adapted = ["benchmarks.adaptation", "--run", plan["run"], "--target", f"work/{plan['site']}"]
    adapted += ["--ways", "harmonise", "--counts", "1", "2", "--kinds", plan["kinds"]]
    return [
        [*trained, "--out", parent, "--splits", f"work/tables/site_{plan['site']}.tsv"],
        [*shown, "--out", "docs/results/calibration.json"],
        [*adapted, "--out", "docs/results/adaptation.json"],
    ]


def adaptation_commands(name: str, plan: Plans, prepared: Plans) -> list[Command]:
    """Return the commands that adapt runs of a set to another, or of one half of it to the other.

    With `shifts` they also adapt them to that half under each of these. `prepared` says how the set
    is preprocessed.
    """
    data = f"work/{plan['data']}"
    table = f"work/tables/{name}.tsv"
    if "site" in plan:
        listed: list[Command] = []
        splits: Command = []
        targets = {"": ["--target", f"work/{plan['site']}"]}
    else:
        listed = [["benchmarks.halves", "--data", data, "--by", plan["by"], "--out", table]]
        splits = ["--splits", table]
        targets = {"": ["--target", data, *splits]}
    for shift in plan.get("shifts", []):
        written = f"_{shift.replace(' ', '_')}"
        raw = f"work/shifted/{name}{written}"
        made = ["benchmarks.shifted", "--data", data, *splits, "--shift", shift]
        listed.append([*made, "--out", raw])
        command = preprocess_command(f"{raw}/cohort.tsv", prepared["modality"], name + written)
        listed.append(command + prepared.get("settings", []))
        targets[written] = ["--target", f"work/{name}{written}"]

    lesions = ["--held-out", str(plan["held_out"])]
    lesions += ["--kinds", plan["kinds"], "--volumes", plan["volumes"]]
    for model, own in plan["runs"].items():
        run_dir = f"runs/{name}/{model}"
        trained = ["pipelines.train", "--model", kind_of(model), "--data", data]
        listed.append([*trained, "--out", run_dir, *splits, *own["settings"]])
        for (shift, target), asked in itertools.product(targets.items(), own["measured"]):
            command = ["benchmarks.adaptation", "--run", run_dir]
            command += ["--name", f"{name}_{model}{shift}"]
            command += ["--ways", *asked["ways"], "--counts", *map(str, asked["counts"])]
            command += ["--draws", str(asked["draws"]), *target, *lesions]
            if "fada" in asked["ways"]:
                command += ["--source", data]
            listed.append([*command, "--out", "docs/results/adaptation.json"])
    return listed


def preprocess_command(source: str, modality: str, name: str) -> Command:
    """Return the command that preprocesses a source into work/<name>."""
    command = ["pipelines.preprocess", "--input", source, "--modality", modality]
    return [*command, "--out", f"work/{name}"]


def raw_command(name: str, plan: Plans, data: Path) -> Command:
    """Return the command that preprocesses a public set."""
    source = f"work/tables/{plan['table']}" if "table" in plan else str(data / plan["folder"])
    return preprocess_command(source, plan["modality"], name) + plan.get("settings", [])


def synthetic_commands(name: str, plan: Plans) -> list[Command]:
    """Return the commands that plant synthetic lesions in a cohort and preprocess the result."""
    folder = f"work/synthetic/{name}"
    planted = ["pipelines.synthesise", "--data", f"work/{plan['data']}", "--out", folder]
    return [
        [*planted, *plan["options"]],
        preprocess_command(f"{folder}/cohort.tsv", plan["modality"], name),
    ]


def selected(plans: Plans, only: str | None) -> dict[str, Plans]:
    """Return the plans of every kind; with `only`, that of one name and what its data need.

    "ready" names all ready-made runs, "calibration" the one plan of that kind.
    """
    chosen: dict[str, Plans] = {}
    data: set[str] = set()
    for kind in ("choose", "compare", "adaptation"):
        chosen[kind] = {name: plan for name, plan in plans[kind].items() if only in (None, name)}
    chosen["ready"] = plans["ready"] if only in (None, "ready") else {}
    shown = only in (None, "calibration")
    chosen["calibration"] = {"calibration": plans["calibration"]} if shown else {}
    for plan in itertools.chain.from_iterable(kind.values() for kind in chosen.values()):
        data |= {plan[key] for key in ("data", "test", "site") if key in plan}

    synthetic = {name: plan for name, plan in plans["synthesise"].items() if name in data}
    data |= {plan["data"] for plan in synthetic.values()}
    raw = plans["preprocess"]
    if only:
        raw = {name: plan for name, plan in raw.items() if name in data}
    return {"preprocess": raw, "synthesise": synthetic, **chosen}


def commands(plans: Plans, data: Path, only: str | None, full: bool) -> list[Command]:
    """Return every command in order; with `only`, that comparison or ranking and what it needs."""
    chosen = selected(plans, only)
    listed = [["benchmarks.real_tables", "--data", str(data), "--out", "work/tables"]]
    for name, plan in chosen["preprocess"].items():
        listed.append(raw_command(name, plan, data))
    for name, plan in chosen["synthesise"].items():
        listed += synthetic_commands(name, plan)
    for name, plan in chosen["choose"].items():
        listed += choose_commands(name, plan, full)
    for name, plan in chosen["ready"].items():
        listed += ready_commands(name, plan)
    for plan in chosen["calibration"].values():
        listed += calibration_commands(plan)
    for name, plan in chosen["adaptation"].items():
        listed += adaptation_commands(name, plan, plans["preprocess"][plan["data"]])
    for name, plan in chosen["compare"].items():
        listed.append(compare_command(name, plan, full))
    return [*listed, results_command(chosen)]


def results_command(chosen: dict[str, Plans]) -> Command:
    """Return the command that writes the results page, with every folder once."""
    folders = [runs_of(plan) for plan in chosen["compare"].values()]
    folders += [f"work/{name}" for name in (*chosen["preprocess"], *chosen["synthesise"])]
    folders += [f"runs/ready_{name}" for name in chosen["ready"]]
    command = ["pipelines.results"]
    for folder in dict.fromkeys(folders):
        command += ["--add", folder]
    return command


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the public sets")
    parser.add_argument(
        "--only", help="one comparison, ranking or adaptation of benchmarks/reproduce.yaml"
    )
    parser.add_argument("--budget", choices=["cpu", "full"], default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    arguments = parser.parse_args()
    plans = read_yaml(ROOT / "benchmarks" / "reproduce.yaml")
    known = [*plans["choose"], *plans["compare"], *plans["adaptation"], "ready", "calibration"]
    if arguments.only and arguments.only not in known:
        listed = ", ".join(known)
        parser.error(
            f"--only {arguments.only}: no such comparison, ranking or adaptation; known: {listed}"
        )
    for command in commands(plans, arguments.data, arguments.only, arguments.budget == "full"):
        print("python -m " + shlex.join(command), flush=True)
        if arguments.dry_run:
            continue
        ended = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False)
        # Where some scans failed, failures.tsv says which, and the rest stands.
        if ended.returncode not in (cli.OK, cli.SOME_FAILED):
            return ended.returncode
    return cli.OK


if __name__ == "__main__":
    cli.leave(main)
