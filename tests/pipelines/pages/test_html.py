"""Pages by their parsed HTML."""

from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.figures.plots import histogram_figure
from pipelines.pages.html import DISCLAIMER, Section, page
from pipelines.pages.text import short_number, tally


class Reader(HTMLParser):
    """Collects tags with attributes, and the text of each table cell."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.cells = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text = "" if tag in ("td", "th") else self.text

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cells.append(self.text)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (0.87654, "0.877"),
        (np.float32(0.5), "0.500"),
        (99.96, "100"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (0.0, "0.00"),
        (-0.25, "\u22120.250"),
        (1.5e-5, "1.50e-05"),
        (float("inf"), "\u221e"),
        (7, "7"),
        (np.int64(12345), "12345"),
        (True, "True"),
        ("a<b", "a<b"),
        (None, "\u2013"),
        (np.nan, "\u2013"),
        (np.float32("nan"), "\u2013"),
    ],
)
def test_cells(cell, text):
    html = page("t", [Section("s", table=(["column"], [[cell]]))])
    assert Reader(html).cells == ["column", text]
    assert ('title="not defined"' in html) == (text == "\u2013")


def test_page_is_self_contained_and_escaped():
    png = histogram_figure(np.array([0.1, 0.2]), np.array([0.3]))
    sections = [
        Section("<script>alert(1)</script>", "one & two\n\nthree", images=[('a "caption"', png)]),
        Section("rows", table=(["model", "dice"], [["vae", 0.5], {"dice": 0.25}])),
    ]
    html = page("Title <b>", sections)
    reader = Reader(html)
    names = [name for name, _ in reader.tags]
    assert "script" not in names and "b" not in names and "link" not in names
    assert names.count("p") == 2 and names.count("section") == 2
    (image,) = [attributes for name, attributes in reader.tags if name == "img"]
    assert image["src"].startswith("data:image/png;base64,") and image["alt"] == 'a "caption"'
    assert "http" not in html and "url(" not in html
    assert reader.cells == ["model", "dice", "vae", "0.500", "\u2013", "0.250"]
    assert DISCLAIMER in html and "not a medical device" in DISCLAIMER and "diagnosis" in DISCLAIMER


def test_page_refuses_what_does_not_fit():
    for row in ([1], [1, 2, 3], {"c": 1}):
        with pytest.raises(ValueError, match="table 'rows'"):
            page("t", [Section("rows", table=(["a", "b"], [row]))])
    with pytest.raises(ValueError, match="PNG"):
        page("t", [Section("s", images=[("jpeg", b"\xff\xd8")])])


def test_names_are_tallied_the_most_frequent_first():
    assert tally(["vae", "atlas", "atlas"]) == "atlas in 2 runs, vae in 1"
    assert tally(["vae"]) == "vae in 1 run"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.01234, "0.0123"), (999.4, "999"), (999.6, "1,000"), (12345.6, "12,346")],
)
def test_a_number_in_a_page_of_text_is_short_and_never_in_powers_of_ten(value, text):
    assert short_number(value) == text
