"""The page and the tables of given rows."""

from html.parser import HTMLParser

from benchmarks.gpu import page, tables
from benchmarks.gpu.conduct import Outcome
from tests.benchmarks.gpu.rows import check, decode, figure, head, outcomes, rows_of

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Every element is closed by its own name; nothing is fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.fetched = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        links = [found.get(name) for name in ("src", "href", "xlink:href") if found.get(name)]
        self.fetched += [link for link in links if not link.startswith(("#", "data:"))]

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_no_other_file(tmp_path):
    found = outcomes(
        decode=decode([0.5, 0.9, 1.2], [3.5, 1.9, 4.0], [60e3, 40e3, 50e3]),
        head=[
            *head([10.0, 20.0], [8.0, 15.0]),
            check("loss <b>", 0.5, passed=False, limit="<= 0.01", kernels="triton"),
        ],
        step=[figure("images/s of a training step", 4321.0, "images/s", network="r50", way="eager")],
    )
    found.append(Outcome("runs", "failed", [], 3.0, "exit code 1\nTraceback <module>"))
    found[0].rows.append({"kind": "skipped", "name": "batch 384", "reason": "no time"})
    path = tmp_path / "gpu.html"
    page.write(path, {"gpu": "NVIDIA <Test>", "driver": "580.1"}, found, rows_of(found), ["head: {kernels: triton}"])
    read = Reader(path.read_text())
    assert not read.open and not read.fetched and list(tmp_path.iterdir()) == [path]
    text = " ".join(read.text)
    for part in (
        "NVIDIA <Test>",
        "FAIL",
        "loss <b>",
        "head: {kernels: triton}",
        "Traceback <module>",
        "no time",
        "4,321",
    ):
        assert part in text, part
    assert path.read_text().count("<svg") == 3 + 1 + 1


def test_checks_of_a_name_stand_together_and_failures_alone():
    rows = [
        check("difference", 0.1, limit="<= 1", image="a"),
        check("difference", 0.3, limit="<= 1", image="b"),
        check("difference", 2.0, passed=False, limit="<= 1", image="c"),
        check("words", "equal"),
    ]
    assert tables.checks([{"part": "pixels", **row} for row in rows]) == [
        ("pixels", "difference (2 times)", "0.1 to 0.3", "<= 1", True),
        ("pixels", "difference (image c)", "2", "<= 1", False),
        ("pixels", "words", "equal", "", True),
    ]
