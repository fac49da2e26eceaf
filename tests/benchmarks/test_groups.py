"""By whom detectors fail: columns of the people joined to what was marked in their scans."""

import pytest

from benchmarks.groups import grouped


def scan(subject, label, ml, brain_ml=1000.0):
    return {
        "subject": subject,
        "label": label,
        "findings": int(ml > 0),
        "false_positive_ml": ml,
        "brain_ml": brain_ml,
    }


def test_marks_in_healthy_scans_are_grouped_by_the_columns_of_their_people():
    people = {"a": {"sex": "f"}, "b": {"sex": "f"}, "c": {"sex": "m"}}
    rows = [scan("a", "healthy", 4.0), scan("b", "healthy", 0.0), scan("c", "healthy", 3.0)]
    ill = scan("c", "abnormal", 100.0)  # counts nowhere
    found = grouped([*rows, ill], people, ["sex", "age"])
    women, men = found.pop("sex")
    assert (women["group"], women["n"], women["false_positive_ml"]) == ("f", 2, 2.0)
    assert women["healthy_with_finding"] == pytest.approx(0.5)
    assert (men["group"], men["n"], men["false_positive_ml"]) == ("m", 1, 3.0)
    assert found == {}  # nobody's age is known, and all brains are of one size


def test_a_scan_whose_subject_is_not_in_the_table_counts_by_its_brain_alone():
    rows = [scan(name, "healthy", ml, 1000.0 + ml) for ml, name in enumerate("abcdef")]
    found = grouped(rows, {"a": {"sex": "f"}, "b": {"sex": "m"}}, ["sex"])
    assert [(group["group"], group["n"]) for group in found["sex"]] == [("f", 1), ("m", 1)]
    assert [group["n"] for group in found["brain_ml"]] == [3, 3]
