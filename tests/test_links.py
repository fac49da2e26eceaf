"""Every link of README and docs that leads into the project leads somewhere."""

import re
from pathlib import Path

import pytest

from pipelines.config import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
# remarks become part of a page elsewhere, from which their links lead
PAGES = [p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if "remarks" not in p.name]


def anchors(path):
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {text.replace(" ", "-") for text in plain}


def lost(page):
    """The links of a page whose file or heading is not there."""
    found = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (heading and heading not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert lost(page) == []


def test_a_lost_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One, two\n[a](#one-two) [b](#three) [c](page.md) [d](other.md) [e](https://x)"
    )
    assert lost(page) == ["#three", "other.md"]
