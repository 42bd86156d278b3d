"""The documentation builds to a site without a warning: no link that leads nowhere, no name that is not there."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.blocks import ROOT

pytest.importorskip("mkdocs", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_reached(site):
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md")}
    found = set(re.findall(r'href="\.?/?([\w/]+)/" class="md-nav__link', (site / "index.html").read_text()))
    assert {str(page) for page in pages} - found - {"index"} == set()


def test_the_api_says_what_docstrings_say(site):
    text = re.sub(r"<[^>]+>", "", (site / "api/losses/index.html").read_text())
    assert "sharded" in text and "embedding_size" in text and "sample_rate" in text


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.search(r'<(?:link|script|img)[^>]+(?:href|src)="(?:https?:)?//(?!\S*canonical)', page.read_text())


def test_every_link_leads_somewhere(site):
    """mkdocs itself says nothing of links to files beside docs/, which the site has not."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    assert sum(len(page.links) for page in pages.values()) > 1000
    for path, page in pages.items():
        for link in page.links:
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            target = target / "index.html" if target.is_dir() else target
            where = f"{path.relative_to(site)}: {link.geturl()}"
            assert target.is_file(), where
            assert not link.fragment or unquote(link.fragment) in pages[target].anchors, where


def test_lists_are_lists(site):
    """Behind an item of several paragraphs stands an empty line, or the next one becomes a part of its text."""
    for path in site.rglob("*.html"):
        text = re.sub(r"<pre>.*?</pre>", "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"^(?:\d+\.|[-*]) ", text, re.MULTILINE), path.relative_to(site)


class Page(HTMLParser):
    """``links`` of a page within the site, and its ``anchors``."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and not urlsplit(value).netloc:
                self.links.append(urlsplit(value))
            elif name == "id":
                self.anchors.add(value)
