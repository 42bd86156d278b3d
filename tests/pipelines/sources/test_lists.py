"""Lists in the layouts of the field's own tools, and what is no list."""

import logging

import numpy as np
import pytest

from pipelines.sources import open_source

POINTS = "\t".join(map(str, range(14)))  # a box and five landmarks


def read(folder, text, encoding="utf-8"):
    """[(path from the list's folder, identity)] of a list."""
    (folder / "a.lst").write_bytes(text.encode(encoding, errors="surrogateescape"))
    source = open_source(folder / "a.lst")
    indices = np.arange(len(source))
    places = [source.describe(n).removeprefix(f"{folder}/").rpartition(", label")[0] for n in indices]
    return [(place, source.identity(label)) for place, label in zip(places, source.labels(indices).tolist())]


@pytest.mark.parametrize(
    "line",
    [
        "{path} {label}",
        "{path}\t{label}",
        "  {path}   {label} ",
        "{path}\t{label}\t1\t2.5\t-3",
        "{path} {label} 1 2.5 -3",
        "17\t{label}.000000\t{path}",
        "17\t{label}\t99\t98.5\t{path}",
        "17 {label} {path}",
        "1\t{path}\t{label}",
        "0\t{path}\t{label}\t" + POINTS,
        "1 {path} {label}",
        "1 {path} {label} " + POINTS.replace("\t", " "),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_layouts(tmp_path, line, end):
    people = [("one/a.jpg", "2"), ("two/b.PNG", "0"), ("im/3.jpg", "1")]
    text = end.join(line.format(path=path, label=label) for path, label in people)
    assert read(tmp_path, text) == people
    assert read(tmp_path, text, "utf-8-sig") == people


@pytest.mark.parametrize("line", ["{}\t{}", "1\t{}\t{}", "0\t{1}\t{0}", "{} {}"])
def test_names_and_blanks(tmp_path, line):
    people = [("Bo Li/a b.jpg", "Bo_Li"), ("1 (2).jpg", "çelik"), ("\udce9.jpg", "x")]
    assert read(tmp_path, "\n".join(line.format(*row) for row in people)) == people
    if "\t" in line:
        assert read(tmp_path, line.format("Bo Li/a b.jpg", "Bo Li")) == [("Bo Li/a b.jpg", "Bo Li")]


def test_files_without_a_suffix(tmp_path):
    for line in ("im/a 3", "im/a\t3", "0\t3\tim/a", "1\tim/a\t3"):
        assert read(tmp_path, line) == [("im/a", "3")]


def test_headings_and_comments_are_left_out_and_told(tmp_path, caplog):
    for heading in ("path label", "index\tlabel\tpath", "image\tidentity"):
        assert read(tmp_path, f"{heading}\na.jpg 0\n") == [("a.jpg", "0")]
        shown = heading.replace("\t", r"\t")
        assert f"a.lst, line 1 is taken for a heading: '{shown}'" in caplog.text
    assert read(tmp_path, "# faces\na.jpg 0\n# b.jpg 0\n") == [("a.jpg", "0")]
    assert "2 lines that begin with # are left out" in caplog.text
    caplog.clear()
    (tmp_path / "face").write_bytes(b"an image without a suffix")
    assert read(tmp_path, "face anna\nb.jpg bo\n") == [("face", "anna"), ("b.jpg", "bo")]
    assert read(tmp_path, "a.gif 0\nb.jpg 0\n") == [("a.gif", "0"), ("b.jpg", "0")]
    assert "taken for a heading" not in caplog.text


@pytest.mark.parametrize(
    "line, reason",
    [
        ("a.jpg", "something is missing"),
        ("\ta.jpg", "something is missing"),
        ("0\t\ta.jpg", "something is missing"),
        ("3 a.jpg", "the last field should be the label"),
        ("Bo Li.jpg", "the last field should be the label"),
        ("1\ta.jpg\t\t5", "the label is missing"),
        ("1\ta.jpg", "the last field should be the label"),
        ("0\t3\t7", "'7' stands where the path should"),
        ("a.jpg -1", "label -1 is no class number"),
        ("a.jpg 1.5", "label 1.5 is no class number"),
        ("a.jpg None", "the label is missing"),
        ("1\ta.jpg\t-1", "label -1 is no class number"),
    ],
)
def test_lines_that_are_none_are_named(tmp_path, line, reason):
    with pytest.raises(ValueError, match=rf"a\.lst, line 3 is not 'path label' \({reason}"):
        read(tmp_path, f"b.jpg 0\n\n{line}\nc.jpg 1\n")


def test_lists_that_are_no_text(tmp_path):
    with pytest.raises(ValueError, match="no UTF-8 text"):
        read(tmp_path, "a.jpg 0\n", "utf-16")
    for text in ("\n", "path label\n", "# nothing\n"):
        with pytest.raises(ValueError, match="names no images"):
            read(tmp_path, text)


def test_a_list_of_film_numbers(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        people = read(tmp_path, "a.jpg 5680089\nb.jpg 45\n")
    assert people == [("a.jpg", "5680089"), ("b.jpg", "45")]
    assert "labels up to 5680089 for 2 identities" in caplog.text
