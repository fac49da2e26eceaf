"""Every text that a page asks for stands in the catalogue in all languages, and none in vain."""

import re
from pathlib import Path

import norma
from app import opinions, texts, users
from app.detect import STAGES
from app.store import ROLES, STATES
from pipelines.detect.places import NAMES, place_of

APP = Path(texts.__file__).parent
ASKED = re.compile(r"""\bt\(\s*"((?:[^"\\]|\\.)+)"\s*\)""")
# what a page that somebody opens or a form that somebody sends may be answered with
REFUSED = re.compile(r"""(?:Refusal|HTTPException)\((?:40[034], )?"([^"{]+)"\)""")
RARE = {  # of requests that no page of ours makes
    "There is no such token.",
    "There is no such user or role.",
    "Another site may not ask for this.",
}


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
    found |= {words for _, words, _ in STAGES}
    for name in ("users", "pages", "report", "security", "main"):
        told = REFUSED.findall((APP / f"{name}.py").read_text())
        found |= {sentence[:1].upper() + sentence[1:] for sentence in told} - RARE
    for length, word in ((users.SHORTEST, "least"), (users.LONGEST, "most")):
        found.add(f"A password has at {word} {length} characters.")
    found |= {f"This needs the role '{role}'." for role in ROLES[1:]}
    found.add("There is no such page.")
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
    assert texts.sentence("name and password do not fit.", "de").startswith("Name und Passwort")
    assert texts.number("3.759", "de") == texts.number("3.759", "fr") == "3,759"
    assert texts.number("3.759", "en") == "3.759"
    deep = "left temporal lobe, 12 mm deep"
    assert texts.place(deep, "fr") == "lobe temporal, gauche, 12\u00a0mm de profondeur"
    assert texts.place(deep, "en") == deep


def test_french_points_of_two_parts_stand_apart_and_do_not_break():
    for english, (_, french) in texts.CATALOGUE.items():
        assert not re.search(r"[^\u00a0][:;!?»]|«[^\u00a0]", french), english


def test_the_login_speaks_the_language_of_the_browser():
    assert texts.preferred("de-CH,de;q=0.9,en;q=0.8") == "de"
    assert texts.preferred("it, fr;q=0.5") == "fr"
    assert texts.preferred("it") == texts.preferred("") == "en"
