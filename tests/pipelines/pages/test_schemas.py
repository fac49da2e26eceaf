"""The schemas in the docs are those of the types, and files that are written obey them."""

import json

import pytest

from pipelines.pages.schemas import FOLDER, TYPES, schema_text


@pytest.mark.parametrize("name", TYPES)
def test_the_docs_hold_the_schema_of_the_type(name):
    assert (FOLDER / f"{name}.json").read_text() == schema_text(name)


def test_a_schema_names_fields_as_the_file_does():
    report = json.loads((FOLDER / "report.json").read_text())
    assert {"id", "status", "score", "components", "fingerprint"} <= set(report["properties"])
    assert "centre_atlas_mm" in report["$defs"]["Component"]["properties"]
    case = json.loads((FOLDER / "case.json").read_text())
    assert "mask" in case["properties"]  # the column of the table; `Case.lesions` in Python
