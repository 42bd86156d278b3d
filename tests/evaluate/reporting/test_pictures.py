import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from evaluate.reporting.pictures import Pair, pair_sheet, save_figure, thumbnails


def encoded(colour, size=(40, 20)):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def test_thumbnails_fit_squares_and_leave_the_rest_white():
    row = thumbnails([encoded("red"), encoded("blue", (400, 400))], places=3, side=64)
    assert row.shape == (64, 192, 3) and row.dtype == np.uint8
    assert row[32, 32].tolist() == [255, 0, 0] and row[10, 32].tolist() == [255, 255, 255]
    assert row[2, 126].tolist() == [0, 0, 255] and row[32, 150].tolist() == [255, 255, 255]
    assert (thumbnails([b"no image", encoded("red")], places=2)[:, :112] == 255).all()


@pytest.mark.parametrize("count, columns, rows", [(0, 3, 1), (1, 3, 1), (7, 3, 3)])
def test_a_sheet_shows_every_pair_once(count, columns, rows):
    pairs = [Pair([encoded("red")], [encoded("blue")] * 2, f"pair {k}") for k in range(count)]
    figure = pair_sheet({"worst": pairs}, columns)
    assert len(figure.axes) == rows * columns
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == [pair.caption for pair in pairs]
    figure.savefig(io.BytesIO())


def test_captions_are_shown_as_they_are():
    """A name may look like a formula, or hold bytes that are no text."""
    save = io.BytesIO()
    figure = pair_sheet({"worst": [Pair([encoded("red")], [encoded("blue")], "$a_{ \udce9")]})
    assert figure.axes[0].texts[0].get_text() == "$a_{ \ufffd"
    figure.savefig(save)


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    save_figure(Figure((1, 1)), path, dpi=20)
    old = path.read_bytes()

    def half(figure, file, **options):
        file.write_bytes(b"half")
        raise OSError

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError):
        save_figure(Figure((2, 2)), path, dpi=20)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
