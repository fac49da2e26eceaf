"""Everything that docs/results.md is made of, in one command: `python -m benchmarks.reproduce --data FOLDER`.

Reads benchmarks/reproduce.yaml, prints each command and runs it: tables, preprocessing, synthetic lesions, the ranking behind each
default, comparisons, results page.
What is done already is not done again. `--only NAME` takes one comparison or ranking, `--budget full` the models' own epochs for a machine
with a GPU, `--dry-run` prints alone.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines.config import ROOT, read_yaml
from pipelines.study.compare import kind_of


def overrides(settings: dict[str, dict[str, Any]], models: list[str]) -> list[str]:
    """ "model.key=value" of every setting that concerns one of the models."""
    concerned = {"all", *models, *(kind_of(m) for m in models)}
    return [
        f"{model}.{key}={value}"
        for model, own in settings.items()
        if model in concerned
        for key, value in own.items()
    ]


def compare_command(name: str, plan: dict[str, Any], full: bool) -> list[str]:
    """The command of one comparison; its runs lie in runs/<data>, shared with every other comparison on that data."""
    command = [
        "pipelines.compare",
        "--data",
        f"work/{plan['data']}",
        "--models",
        " ".join(plan["models"]),
        "--out",
        f"runs/{plan['data']}",
    ]
    command += ["--test", f"work/{plan['test']}"] if "test" in plan else []
    command += ["--name", name] if name != plan.get("test", plan["data"]) else []
    for key in ("protocol", "seeds", "baseline"):
        command += [f"--{key}", str(plan[key])] if key in plan else []
    command += overrides(plan["settings"], plan["models"])
    return command if full else command + overrides(plan["budget"], plan["models"])


def choose_commands(name: str, plan: dict[str, Any], full: bool) -> list[list[str]]:
    """The trainings of one ranking, in runs/<name>, and the ranking itself."""
    data, listed = ["--data", f"work/{plan['data']}"], []
    for run, settings in plan["runs"].items():
        own = settings | ({} if full else plan["budget"].get(settings["model"], {}))
        command = [
            "pipelines.train",
            *data,
            "--out",
            f"runs/{name}/{run}",
            "--model",
            own.pop("model"),
        ]
        listed.append([*command, *(f"{key}={value}" for key, value in own.items())])
    command = ["pipelines.choose", *data, "--kinds", plan["kinds"], "--volumes", plan["volumes"]]
    command += ["--out", f"docs/results/{name}.tsv"]
    return [*listed, [*command, "--runs", *(f"runs/{name}/{run}" for run in plan["runs"])]]


def commands(plans: dict[str, Any], data: Path, only: str | None, full: bool) -> list[list[str]]:
    """Every command in order; with `only`, that comparison or ranking and what its data need."""
    ranked, wanted = (
        {k: v for k, v in plans[what].items() if only in (None, k)}
        for what in ("choose", "compare")
    )
    sets = {
        plan[key]
        for plan in (*ranked.values(), *wanted.values())
        for key in ("data", "test")
        if key in plan
    }
    synthetic = {name: plan for name, plan in plans["synthesise"].items() if name in sets}
    raw = {
        name: plan
        for name, plan in plans["preprocess"].items()
        if not only or name in sets | {p["data"] for p in synthetic.values()}
    }
    listed = [["benchmarks.real_tables", "--data", str(data), "--out", "work/tables"]]
    for name, plan in raw.items():
        source = f"work/tables/{plan['table']}" if "table" in plan else str(data / plan["folder"])
        listed.append(
            [
                "pipelines.preprocess",
                "--input",
                source,
                "--modality",
                plan["modality"],
                "--out",
                f"work/{name}",
                *plan.get("settings", []),
            ]
        )
    for name, plan in synthetic.items():
        folder = f"work/synthetic/{plan['data']}"
        listed.append(
            [
                "pipelines.synthesise",
                "--data",
                f"work/{plan['data']}",
                "--out",
                folder,
                "--per-scan",
                "7",
            ]
        )
        listed.append(
            [
                "pipelines.preprocess",
                "--input",
                f"{folder}/cohort.tsv",
                "--modality",
                plan["modality"],
                "--out",
                f"work/{name}",
            ]
        )
    listed += [
        command for name, plan in ranked.items() for command in choose_commands(name, plan, full)
    ]
    listed += [compare_command(name, plan, full) for name, plan in wanted.items()]
    folders = dict.fromkeys(
        [
            *(f"runs/{plan['data']}" for plan in wanted.values()),
            *(f"work/{name}" for name in (*raw, *synthetic)),
        ]
    )
    return [
        *listed,
        ["pipelines.results", *[part for folder in folders for part in ("--add", folder)]],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the public sets")
    parser.add_argument("--only", help="one comparison or ranking of benchmarks/reproduce.yaml")
    parser.add_argument("--budget", choices=["cpu", "full"], default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="print the commands alone")
    arguments = parser.parse_args()
    plans = read_yaml(ROOT / "benchmarks" / "reproduce.yaml")
    known = [*plans["choose"], *plans["compare"]]
    if arguments.only and arguments.only not in known:
        parser.error(
            f"--only {arguments.only}: no such comparison or ranking; known: {', '.join(known)}"
        )
    for command in commands(plans, arguments.data, arguments.only, arguments.budget == "full"):
        print("python -m " + shlex.join(command), flush=True)
        if not arguments.dry_run:
            done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False)
            if done.returncode not in (
                0,
                1,
            ):  # 1: some scans failed, said in failures.tsv; the rest stands
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
