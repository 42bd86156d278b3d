"""Tables of figures on the terminal."""

from benchmarks.results import show


def test_names_are_printed_as_they_are(capsys):
    show([{"run": "[red]a[/b] :smile:", "images": 3}], "of [c]")
    printed = capsys.readouterr().out
    assert "[red]a[/b] :smile:" in printed and "of [c]" in printed
