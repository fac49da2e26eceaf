"""Ids and subjects: no two scans share a file, whatever they are called."""

import hashlib
import unicodedata
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from preprocessing.scans import SUFFIXES, InputError, Scan, safe_name, stem, unique_ids
from preprocessing.tables import read_scans

SPACE = "MNI152NLin2009aSym"

# names that meet when case, form, spaces or signs are lost, that are files of other names, that are
# no text, too long, or reserved somewhere
PIECES = [
    *"aAbB1 -.()_#$;=+@~'\"\\%&\n\t",
    "\u7532",  # Chinese
    "\u4e59",
    "\u0915\u093f",  # Devanagari with a vowel sign, which is no letter
    "\u0915\u0940",
    "\xe9",  # one letter, and the same in two parts
    "e\u0301",
    "\xdf",  # equal to ss where case is folded
    "ss",
    "\ufb01",  # a ligature
    "fi",
    "\u0130",  # Turkish
    "\u200d",
    "\U0001f9e0",
    "\udcff",  # bytes that are no UTF-8
    "\udcfe",
    "\ud800",
    "_mask",
    "_map",
    "_report",
    "_T1w",
    "_FLAIR",
    "_flair",
    "_picture-2",
    "_space-x_desc-preproc",
    "nul",
    "quality",
    "scans.tsv",
    "a" * 120,
    "\u7532" * 60,
]


def spelled(number):
    """Up to four pieces, by a number."""
    pieces = []
    while number:
        number, i = divmod(number, len(PIECES))
        pieces.append(PIECES[i])
    return "".join(pieces)


NAMES = st.integers(1, len(PIECES) ** 4 - 1).map(spelled)
BATCHES = st.lists(NAMES, min_size=1, max_size=20, unique=True)
LARGE = st.lists(NAMES, min_size=100, max_size=120, unique=True)  # 100 times: 10,000 names


def outputs(scan):
    """Every file that Norma writes for a scan of several sequences, from OUT on."""
    suffixes = ("ct", "T1w", "T2w", "FLAIR", "picture", "picture-2")
    base = f"{scan.subject}/{scan.id}"
    yield from (f"{scan.id}_{ending}" for ending in ("mask.nii.gz", "map.nii.gz", "report.json"))
    yield f"{base}_preproc.json"
    yield f"{base}_space-{SPACE}_desc-brain_mask.nii.gz"
    yield f"{base}_from-orig_to-{SPACE}_mode-image_xfm.mat"
    yield f"quality/{scan.id}.png"
    yield f"slices/{scan.id}_image.npy"
    yield f"slices/{scan.id}_mask.npy"
    yield f"slices/nifti/{scan.id}/{scan.id}_slice-000.nii.gz"
    for suffix in suffixes:
        yield f"{base}_space-{SPACE}_desc-preproc_{suffix}.nii.gz"
        yield f"{base}_from-{suffix}_to-{SPACE}_mode-image_xfm.mat"
        yield f"quality/{scan.id}_{suffix}.png"


def as_a_file_system(path):
    """A path where neither case nor the form of a letter counts."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", path).casefold())


def named(names):
    return [Scan(name, Path(f"/in/{i}.nii.gz"), name) for i, name in enumerate(names)]


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large],
)
@given(LARGE)
def test_no_two_outputs_of_ten_thousand_nasty_names_are_one_file(names):
    made = unique_ids(named(names))
    fold = as_a_file_system  # of the names alone: what Norma puts behind them has no such letters
    folded = [replace(s, id=fold(s.id), subject=fold(s.subject)) for s in made]
    paths = [path.lower() for path in chain(*map(outputs, folded))]
    assert len(paths) == len(set(paths))

    # the longest name of a machine has 64 bytes, and stands in the names of temporary files
    longest = max(made, key=lambda scan: len(scan.id.encode()))
    parts = set("/".join(outputs(longest)).split("/"))
    assert max(len(part.encode()) for part in parts) <= 255 - len(f".tmp-{'h' * 64}-4194304-")
    assert max(len(scan.subject.encode()) for scan in made) <= 100
    for scan in made:
        assert safe_name(scan.id) == scan.id
        assert scan.subject == scan.subject.strip("-.") != ""

    # a subject is one person: as many folders as subjects, however forms of a letter are written
    people = {unicodedata.normalize("NFC", name) for name in names}
    assert len({as_a_file_system(scan.subject) for scan in made}) == len(people)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(BATCHES, st.randoms(use_true_random=False))
def test_ids_depend_on_names_and_not_on_their_order(names, random):
    scans = named(names)
    ids = {scan.image: (scan.id, scan.subject) for scan in unique_ids(scans)}
    random.shuffle(scans)
    again = unique_ids(scans)
    assert ids == {scan.image: (scan.id, scan.subject) for scan in again}
    assert unique_ids(again) == again


def test_letters_of_all_scripts_stay_and_what_meets_gets_a_digest():
    def ids(*names):
        return [scan.id for scan in unique_ids(named(names))]

    assert ids("\u7532", "\u4e59") == ["\u7532", "\u4e59"]
    assert ids("cafe\u0301 1") == ["caf\xe9-1"]
    digests = [hashlib.sha256(name.encode()).hexdigest()[:8] for name in ("scan 1", "scan-1")]
    assert ids("scan 1", "scan-1", "other") == [*(f"scan-1-{d}" for d in digests), "other"]
    assert ids("scan 1") == ["scan-1"]
    assert all(a.casefold() != b.casefold() for a, b in pairwise(ids("Head", "HEAD", "head")))
    (long,) = ids("b" * 300)
    assert long.startswith("b" * 80) and len(long) == 100
    (no_text,) = ids("caf\udce9")
    assert no_text == f"caf-{hashlib.sha256(b'caf' + bytes([0xED, 0xB3, 0xA9])).hexdigest()[:8]}"


@pytest.mark.parametrize(
    ("one", "other"),
    [("\xc9", "e\u0301"), ("\ufb01n", "FIN"), ("stra\xdfe", "STRASSE"), ("\uff21", "a")],
)
def test_forms_of_a_letter_that_a_file_system_may_not_tell_apart_meet(one, other):
    first, second = (as_a_file_system(scan.id) for scan in unique_ids(named([one, other])))
    assert first != second


def test_a_digest_that_somebody_gave_as_a_name_meets_nothing():
    first = [scan.id for scan in unique_ids(named(["a b", "a-b"]))]
    names = ["a b", "a-b", *first]
    for _ in range(3):
        made = [scan.id for scan in unique_ids(named(names))]
        assert len(set(made)) == len(names)
        names = list({*names, *made})


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_the_picture_of_a_second_sequence_is_no_other_scan_s(suffix):
    first, second = unique_ids(named(["a", f"a_{suffix}"]))
    assert second.id != f"{first.id}_{suffix}"


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return {str(s.image.relative_to(folder)): (s.id, s.subject) for s in read_scans(folder, "ct")}


def test_files_of_one_stem_in_one_folder_are_scans_of_one_subject(tmp_path):
    found = files(tmp_path, "x.nii", "x.nii.gz", "a_T1w.nii", "a_FLAIR.nii", "b.mgz")
    ids = {name: scan_id for name, (scan_id, _) in found.items()}
    assert len(set(ids.values())) == 5 and ids["b.mgz"] == "b"
    assert {found["a_T1w.nii"][1], found["a_FLAIR.nii"][1]} == {"a"}
    assert found["x.nii"][1] == found["x.nii.gz"][1]


def test_ways_that_read_the_same_are_two_scans_and_two_subjects(tmp_path):
    found = files(tmp_path, "1/a_b.nii", "1_a/b.nii", "2/a_b.nii", "2/b.nii")
    assert len({scan_id for scan_id, _ in found.values()}) == 4
    assert len({subject for _, subject in found.values()}) == 4


def test_visits_of_one_person_are_one_subject(tmp_path):
    found = files(tmp_path, "p1/v1/T1.nii", "p1/v2/T1.nii", "p2/v1/T1.nii", "p3/T1.nii")
    assert found == {
        "p1/v1/T1.nii": ("p1_v1_T1", "p1"),
        "p1/v2/T1.nii": ("p1_v2_T1", "p1"),
        "p2/v1/T1.nii": ("p2_v1_T1", "p2"),
        "p3/T1.nii": ("p3_T1", "p3"),
    }
    other = files(tmp_path / "bids", "sub-1/T1.nii", "sub-2/T1.nii")
    assert {subject for _, subject in other.values()} == {"sub-1", "sub-2"}


def test_two_rows_with_ids_and_files_of_one_name_are_two_subjects(tmp_path):
    (tmp_path / "t.csv").write_text("image,id\np1/T1.nii,first\np2/T1.nii,second\n")
    found = read_scans(tmp_path / "t.csv", "t1")
    assert [(s.id, s.subject) for s in found] == [("first", "p1_T1"), ("second", "p2_T1")]


def test_subjects_that_become_one_name_stay_two(tmp_path):
    (tmp_path / "t.csv").write_text("image,subject\na.nii,p 1\nb.nii,p-1\nc.nii,p 1\nd.nii,P-1\n")
    a, b, c, d = (s.subject for s in read_scans(tmp_path / "t.csv", "t1"))
    assert a == c and len({name.casefold() for name in (a, b, d)}) == 3


def test_bids_subjects_in_any_script_are_told_by_their_vowels(tmp_path):
    names = ("sub-\u0915\u093f", "sub-\u0915\u0940", "sub-01")
    found = files(tmp_path, *(f"{name}/{name}_ct.nii" for name in names))
    assert sorted(subject for _, subject in found.values()) == sorted(names)


def test_one_file_twice_is_no_second_scan():
    scan = Scan("a", Path("/in/a.nii"), "a")
    with pytest.raises(InputError, match=r"/in/a\.nii: listed twice; list a scan once"):
        unique_ids([scan, replace(scan, image=Path("/in/../in/a.nii"))])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.nii.gz", "a"),
        ("a_T1w.NII.GZ", "a"),
        ("a.b.img", "a.b"),
        ("brain.mgz", "brain"),
        ("x.PNG", "x"),
        (".nii", ".nii"),
        ("1.2.840", "1.2.840"),
    ],
)
def test_stems(name, expected):
    assert stem(Path("/in") / name) == expected
