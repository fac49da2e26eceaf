"""The curve of a memory on made-up findings, where it is known what it must bring."""

import numpy as np

from benchmarks.learning import Components, Scan, curve, damped, measured, rejected, scans_of
from pipelines.cohort.cases import read_cases
from pipelines.config import ROOT
from pipelines.detect.memory import SCALES
from preprocessing.files import read_json
from tests.pipelines.study.test_learn import parent  # noqa: F401
from tests.pipelines.test_pictures import data, folder  # noqa: F401  the same prepared pictures

LEVEL = 1.0
HABIT = np.array([30, 0, 0, np.log(500), 1, 1, 0.5, 0.8]) / SCALES  # a vessel in every head


def scan(rng, habit):
    """A false finding of strength 1.5, at its habitual place or anywhere, and a lesion of 1.2."""
    anywhere = rng.uniform(-300, 300, 3) / 10
    false = HABIT + rng.normal(0, 0.1, 8)
    lesion = HABIT + rng.normal(0, 0.1, 8)
    lesion[:3] = rng.uniform(-300, 300, 3) / 10
    if not habit:
        false[:3] = anywhere
    both = np.array([false, lesion])
    healthy = Components(np.array([1.5]), both[:1], np.zeros(1, bool))
    return Scan(healthy, Components(np.array([1.5, 1.2]), both, np.array([False, True])))


def scans(habit, count=30):
    rng = np.random.default_rng(0)
    return [scan(rng, habit) for _ in range(count)]


def test_a_memory_takes_away_what_every_head_has_and_nothing_else():
    with_habit, without = (curve(scans(habit), LEVEL, [5, 20], 0.1, 5) for habit in (True, False))
    for row in with_habit:
        assert row["sensitivity"] == 1 and row["false_before"] == 1
        assert row["false_after"] < 0.05 and row["sensitivity_after"] > 0.9
    for row in without:
        assert row["false_after"] > 0.8
    (row,) = curve(scans(True, 9), LEVEL, [5], 0.1, 5)
    assert row == {"read": 5, "not_measured": "9 scans, and 5 are left to measure on"}


def test_readers_reject_what_is_no_lesion_unless_they_are_wrong():
    rng = np.random.default_rng(1)
    read = scans(True, 400)
    false = np.array([one.planted.vectors[0] for one in read])
    np.testing.assert_array_equal(rejected(read, LEVEL, 0.0, rng), false)
    lesions = {tuple(one.planted.vectors[1]) for one in read}
    entries = rejected(read, LEVEL, 0.1, rng)
    mistaken = sum(tuple(entry) in lesions for entry in entries)
    assert 20 < mistaken < 60 and 340 < len(entries) - mistaken < 380
    assert len(rejected(read, 1.3, 1.0, rng)) == 0  # the lesions are too weak to be shown


def test_equal_sensitivity_by_hand():
    """Damping halves both the lesion and the weak false finding: the level follows the lesion."""
    entry = HABIT[None]
    same = np.array([HABIT, HABIT])
    weak = Components(np.array([1.1, 4.0]), np.array([HABIT, HABIT + 50]), np.zeros(2, bool))
    one = Scan(weak, Components(np.array([1.2, 1.0]), same, np.array([True, False])))
    np.testing.assert_allclose(damped(one.planted, entry), [0.6, 0.5])
    row = measured([one], entry, LEVEL)
    assert row["sensitivity"] == 1 and row["sensitivity_after"] == 0
    assert row["false_before"] == row["false_after"] == 1  # 4.0 alone: 1.1 < 1.2, 0.55 < 0.6
    assert row["false_before_at_level"] == 2 and row["false_after_at_level"] == 1


def test_on_prepared_pictures(parent, data):
    cases = [case for case in read_cases(data) if case.label == "healthy"][8:14]
    found = scans_of(parent, cases)
    assert len(found) == 6 and any(one.planted.hits.any() for one in found)
    assert not any(one.healthy.hits.any() for one in found)
    for one in found:
        assert (one.healthy.strength > parent.point().voxel).all()
        assert one.healthy.vectors.shape == (one.healthy.strength.size, 8)
    (row,) = curve(found, parent.point().component, [1], 0.1, 3)
    assert row["false_after_at_level"] <= row["false_before_at_level"]
    assert row["sensitivity_after"] <= row["sensitivity"]


def test_the_docs_say_what_was_measured():
    page = (ROOT / "docs" / "user_guide.md").read_text()
    found = read_json(ROOT / "docs" / "results" / "learning.json")
    assert f"on {found['scans']} healthy FLAIR slices" in page
    own = found["curves"][0]
    assert own["false_alarm"] == 0.1
    for row in own["rows"]:
        lesions = f"{row['sensitivity']:.1%}, {row['sensitivity_after']:.1%}"
        false = f"{row['false_before']:.3f}, {row['false_after']:.3f} ± {row['false_after_sd']:.3f}"
        assert f"| {row['read']} | {row['entries']:.1f} | {lesions} | {false} |" in page
