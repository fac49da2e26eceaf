"""JSON schemas of what Norma writes: docs/schemas/<name>.json, from the types themselves."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from pipelines.cohort.cases import Case
from pipelines.config import ROOT
from pipelines.detect.points import Point
from pipelines.detect.report import Component, Report
from pipelines.study.evaluation import Evaluation
from preprocessing.files import write_atomic

FOLDER = ROOT / "docs" / "schemas"
TYPES: dict[str, type[BaseModel]] = {
    "case": Case,
    "component": Component,
    "evaluation": Evaluation,
    "point": Point,
    "report": Report,
}


def schema_text(name: str) -> str:
    """The schema of a type as the file holds it."""
    schema = TYPES[name].model_json_schema(mode="serialization")
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def write_schemas(folder: Path = FOLDER) -> None:
    """Write every schema."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TYPES:
        write_atomic(folder / f"{name}.json", schema_text(name))
