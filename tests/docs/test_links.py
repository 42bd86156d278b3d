"""Links of the pages beside docs/ lead to files and headings, all addresses are whole. The site: test_site.py."""

import re
from urllib.parse import urlsplit

import pytest

from tests.docs.blocks import ROOT

OUTSIDE = sorted(ROOT.glob("*.md"))
PAGES = [*OUTSIDE, *sorted((ROOT / "docs").rglob("*.md"))]


def links(page):
    """What stands in brackets behind a text, outside of fenced blocks."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: page.name)
def test_files_and_headings_are_there(page):
    for link in map(urlsplit, links(page)):
        if not link.scheme:
            target = page.parent / link.path if link.path else page
            assert target.exists(), link.geturl()
            assert not link.fragment or link.fragment in anchors(target), link.geturl()


def test_addresses_are_whole():
    found = [urlsplit(link) for page in PAGES for link in links(page) if urlsplit(link).scheme]
    assert found
    for address in found:
        assert address.scheme == "https" and "." in address.netloc and "example" not in address.netloc, address.geturl()
