"""Files: tables, atomic writing, and digests against hashlib by hand."""

import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from preprocessing.files import (
    digest_of,
    read_json,
    read_table,
    write_atomic,
    write_rows,
    write_table,
)


class Made(BaseModel):
    width: int
    folder: Path
    rate: float = float("nan")


def test_a_digest_is_sha_256_of_canonical_json():
    text = '["b",{"a":[1,2.5,null],"z":"x/y"},{"folder":"p/q","rate":null,"width":3},true]'
    parts = (
        "b",
        {"z": Path("x/y"), "a": np.array([1, 2.5, np.nan], object)},
        Made(width=3, folder=Path("p/q")),
        np.bool_(True),
    )
    assert digest_of(*parts) == hashlib.sha256(text.encode()).hexdigest()


def test_a_digest_tells_values_apart_and_not_the_order_of_keys():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of((1, 2)) == digest_of([1, 2]) == digest_of(np.array([1, 2]))
    assert digest_of("a", "b") != digest_of("ab") and digest_of(1) != digest_of("1")
    assert digest_of() == hashlib.sha256(b"[]").hexdigest()


def test_a_table_comes_back_as_it_was_written(tmp_path):
    rows = [
        {"id": "a", "note": 'an "unclosed quote', "n": 3},
        {"id": "b", "note": '"', "n": None},
        {"id": "ç", "note": "two\tcells\nand, lines", "n": 0.5},
    ]
    write_table(tmp_path / "t.tsv", rows)
    assert read_table(tmp_path / "t.tsv") == [
        {"id": "a", "note": 'an "unclosed quote', "n": "3"},
        {"id": "b", "note": '"', "n": ""},
        {"id": "ç", "note": "two cells and, lines", "n": "0.5"},
    ]
    write_table(tmp_path / "t.tsv", rows, ("n", "id"))
    assert (tmp_path / "t.tsv").read_text(encoding="utf-8") == "n\tid\n3\ta\n\tb\n0.5\tç\n"
    write_table(tmp_path / "empty.tsv", [], ("n", "id"))
    assert (tmp_path / "empty.tsv").read_text() == "n\tid\n"
    assert read_table(tmp_path / "empty.tsv") == []


def test_rows_that_are_too_long_or_too_short_lose_nothing_else(tmp_path):
    (tmp_path / "t.csv").write_text("image,id\na.nii\nb.nii,two,extra\n")
    assert read_table(tmp_path / "t.csv") == [
        {"image": "a.nii", "id": ""},
        {"image": "b.nii", "id": "two"},
    ]


@pytest.mark.parametrize("where", ["write_bytes", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where):
    path = tmp_path / "scores.tsv"
    write_atomic(path, "old")
    real = Path.write_bytes

    def full(self, *rest):
        if where == "write_bytes":
            real(self, b"hal")  # the disk fills in the middle of the file
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, where, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new content")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.tsv"]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@sum", "=HYPERLINK(1)"])
def test_a_cell_is_no_formula(tmp_path, text):
    write_table(tmp_path / "t.tsv", [{"a": text, "b": "plain", "c": -1.5, "d": "+3"}])
    cells = (tmp_path / "t.tsv").read_text().splitlines()[1].split("\t")
    assert cells == [f"'{text}", "plain", "-1.5", "+3"]
    (row,) = read_table(tmp_path / "t.tsv")
    assert row == {"a": text, "b": "plain", "c": "-1.5", "d": "+3"}


def test_entries_of_lists_have_a_line_each_however_deep_and_the_rest_is_short(tmp_path):
    content = {
        "about": {"kept": {"in": [1, 2]}},
        "cohorts": {"a": {"n": 2, "rows": [{"x": 1}, {"x": float("nan")}]}},
        "rows": [[1, 2], [3]],
        "none": [],
    }
    path = tmp_path / "x.json"
    write_rows(path, content)
    assert path.read_text().splitlines() == [
        "{",
        ' "about": {"kept": {"in": [1, 2]}},',
        ' "cohorts": {',
        '  "a": {',
        '   "n": 2,',
        '   "rows": [',
        '    {"x": 1},',
        '    {"x": null}',
        "   ]",
        "  }",
        " },",
        ' "rows": [',
        "  [1, 2],",
        "  [3]",
        " ],",
        ' "none": []',
        "}",
    ]
    content["cohorts"]["a"]["rows"][1]["x"] = None
    assert read_json(path) == content
