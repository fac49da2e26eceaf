"""Two halves of a cohort: by subject, the source below the target."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.halves import LOT, MEASURES, halves, values_of
from preprocessing.scans import InputError
from tests.conftest import case_of


def test_the_source_has_less_and_a_quarter_of_it_calibrates():
    values = {f"s{n:02}": [n / 10, n / 10 + 0.01] for n in range(17)}
    splits = halves(values)
    assert all(splits[f"s{n:02}"] == "test" for n in range(8, 17))
    source = [splits[f"s{n:02}"] for n in range(8)]
    assert (source.count("val"), source.count("train")) == (2, 6)
    assert halves(dict(reversed(values.items()))) == splits
    assert sorted(halves({str(n): [n] for n in range(4)}).values()) == [
        "test",
        "test",
        "train",
        "val",
    ]


def test_too_few_subjects_are_refused():
    with pytest.raises(InputError, match="3 healthy subjects"):
        halves({str(n): [n] for n in range(3)})


def test_measures_by_hand():
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.9])
    assert MEASURES["brightness"](values) == pytest.approx(0.3)
    assert MEASURES["contrast"](values) == pytest.approx(0.2)


def test_by_lot_each_case_has_its_own_number_and_keeps_it():
    cases = [case_of(f"s{n}", Path("data")) for n in range(40)]
    values = values_of(cases, LOT)
    assert values == values_of(cases, LOT) and len(set(values.values())) == len(cases)
    in_order = [values[case.id] for case in cases]
    assert in_order != sorted(in_order)
