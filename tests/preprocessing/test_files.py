"""Files: digests against hashlib by hand."""

import hashlib
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from preprocessing.files import digest_of


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
