"""Every text that a page asks for stands in the catalogue in all languages, and none in vain."""

import re
from pathlib import Path

import norma
from app import opinions, texts
from app.store import ROLES, STATES
from pipelines.detect.places import NAMES, place_of

APP = Path(texts.__file__).parent
ASKED = re.compile(r"""\bt\(\s*"((?:[^"\\]|\\.)+)"\s*\)""")


def asked_texts() -> set[str]:
    """The keys in templates and scripts, and those that come as values of the data."""
    found = {norma.NOTICE, *STATES, *ROLES, *opinions.VALUES, "correction", "drawn"}
    for values in opinions.VALUES.values():
        found.update(values)
    for x in (-50, 0, 50):
        for lobe in (*NAMES, "lung"):
            side, _, rest = place_of(lobe, (x, 0, 0), 12.0).partition(" ")
            assert rest == f"{lobe}, 12 mm deep"
            found |= {side, lobe, "mm deep"}
    for path in [*APP.glob("templates/*.html"), *APP.glob("static/*.js")]:
        found.update(ASKED.findall(path.read_text()))
    return found


def test_every_text_is_known_and_none_is_in_vain():
    asked = asked_texts()
    assert len(asked) > 150
    assert asked - set(texts.CATALOGUE) == set()
    assert set(texts.CATALOGUE) - asked == set()


def test_every_text_is_in_every_language():
    for text in texts.CATALOGUE:
        for language in texts.LANGUAGES:
            assert texts.translate(text, language).strip()
    assert texts.translate("Threshold", "de") == "Schwelle"
    assert texts.translate("Threshold", "fr") == "Seuil"
    assert texts.translate("Threshold", "en") == "Threshold"
    assert texts.translate("never seen", "de") == "never seen"
    deep = "left temporal lobe, 12 mm deep"
    assert texts.place(deep, "fr") == "lobe temporal, gauche, 12 mm de profondeur"
    assert texts.place(deep, "en") == deep
