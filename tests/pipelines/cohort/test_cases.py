"""What a run learns from: the digest that tells one cohort from another."""

from pathlib import Path

import pytest

from pipelines.cohort.cases import data_digest, data_digest_0
from tests.conftest import case_of


def cases(**changes):
    """Two training cases, one of validation and one of test; the first with changes."""
    rows = [
        {"split": "train", "digest": "1", "fingerprint": "p"},
        {"split": "train", "digest": "2", "fingerprint": "q"},
        {"split": "val", "digest": "3", "fingerprint": "r"},
        {"split": "test", "digest": "4", "fingerprint": "s"},
    ]
    rows[0] |= changes
    return [case_of(f"c{i}", Path("data"), **row) for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "change", [{"split": "val"}, {"digest": "9"}, {"fingerprint": "other recipe"}]
)
def test_another_split_image_or_recipe_is_other_data(change):
    assert data_digest(cases(**change)) != data_digest(cases())


def test_the_place_of_the_files_and_the_test_scans_do_not_count():
    moved = [case.model_copy(update={"image": Path("/elsewhere/x.nii")}) for case in cases()]
    assert data_digest(moved) == data_digest(cases())
    assert data_digest(cases()[:3]) == data_digest(cases())
    assert data_digest(cases()[::-1]) == data_digest(cases())


def test_the_digest_of_version_0_1_0_is_of_paths():
    assert data_digest_0(cases(digest="9")) == data_digest_0(cases())
    moved = [case.model_copy(update={"image": Path("/elsewhere/x.nii")}) for case in cases()]
    assert data_digest_0(moved) != data_digest_0(cases())
