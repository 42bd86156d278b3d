"""An HTML page in the making: headings, charts, tables of rates beside published ones, pictures; all inline."""

import base64
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from evaluate.protocols.intervals import Difference
from evaluate.reporting import charts
from evaluate.reporting.pictures import save_figure
from evaluate.reporting.words import bracket
from pipelines.common.files import replacing

PUBLISHED = Path(__file__).with_name("published.json")
STYLE = Path(__file__).with_name("report.css")


class Page:
    """HTML in the making; charts are drawn into it and, as PNG, beside it."""

    def __init__(self, folder: Path, colours: Mapping[str, str]) -> None:
        self.folder, self.colours = folder, colours
        self.parts: list[str] = []
        self.published = json.loads(PUBLISHED.read_text())["rows"]
        self.cited: dict[str, int] = {}
        self.files: set[str] = set()

    def section(self, title: str, lead: str = "") -> None:
        self.parts.append(f"<h2>{escape(title)}</h2>" + (f'<p class="lead">{escape(lead)}</p>' if lead else ""))

    def figures(self, figures: Mapping[str, Figure]) -> None:
        """Charts side by side, by names for their PNG files; what no file should be called becomes _."""
        drawn = []
        for name, figure in figures.items():
            with rc_context(charts.STYLE):
                save_figure(figure, self.folder / f"{self._file(name)}.png", dpi=160)
            drawn.append(inline(figure))
        self.parts.append(f'<div class="charts">{"".join(drawn)}</div>')

    def _file(self, name: str) -> str:
        """Letters, digits and _, not too many, and no file's name that is taken."""
        name = "".join(letter if letter.isalnum() else "_" for letter in name[:50])
        while name in self.files:
            name += "_"
        self.files.add(name)
        return name

    def picture(self, png: bytes, caption: str) -> None:
        data = base64.b64encode(png).decode()
        self.parts.append(
            f'<figure class="sheet"><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def table(
        self,
        heading: str,
        columns: Mapping[str, str],
        ours: Mapping[str, Mapping[str, float | None]],
        published: Sequence[tuple[dict, Mapping[str, float]]] = (),
        spread: Mapping[str, Mapping[str, float | None]] | None = None,
        intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
        least: bool = False,
        unlike: Collection[str] = (),
    ) -> None:
        """Rates in percent: our models first, their best in bold, then published rows; ``columns`` maps keys to titles.

        ``spread`` holds standard deviations in the shape of ``ours``, ``intervals`` their 95 % intervals; the best is
        the largest, or the ``least`` of errors, and nothing stands out in columns that were measured ``unlike``.
        """
        choose = min if least else max
        best = {
            key: choose((rate for row in ours.values() if (rate := row.get(key)) is not None), default=None)
            for key in columns
            if key not in unlike
        }

        def cell(row: Mapping[str, float | None], key: str, name: str | None = None) -> str:
            value = row.get(key)
            if value is None:
                return "<td>–</td>"
            text = f"{100 * value:.2f}"
            deviation = spread[name][key] if spread and name else None
            if deviation is not None:
                text += f' <span class="pm">± {100 * deviation:.2f}</span>'
            if intervals and name and (pair := intervals[name].get(key)):
                text += f' <span class="ci">{bracket(pair)}</span>'
            mark = ' class="best"' if name and len(ours) > 1 and value == best.get(key) else ""
            return f"<td{mark}>{text}</td>"

        rows = [self.row(name, (cell(row, key, name) for key in columns)) for name, row in ours.items()]
        for source, row in published:
            number = self.cited.setdefault(source["source"], len(self.cited) + 1)
            label = f"{source['method']} · {source['network']} · {source['data']}"
            rows.append(
                f'<tr><th>{escape(label)} <a href="#source{number}">[{number}]</a></th>'
                + "".join(cell(row, key) for key in columns)
                + "</tr>"
            )
        self.parts.append(rows_table(heading, columns.values(), rows))

    def row(self, name: str, cells: Iterable[str]) -> str:
        """A model's row of ``cells``, which are HTML, led by its name in its colour."""
        mark = f'<i style="background:{self.colours[name]}"></i>' if name in self.colours else ""
        return f'<tr class="ours"><th>{mark}{escape(name)}</th>{"".join(cells)}</tr>'

    def texts(
        self, heading: str, columns: Mapping[str, str], rows: Mapping[str, Mapping[str, tuple[str, str, str]]]
    ) -> None:
        """A table of figures that are no rates, a row a model: each as it reads, its interval, and a remark."""

        def cell(value: str, *below: str) -> str:
            lines = "".join(f'<span class="ci">{escape(text)}</span>' for text in below if text)
            return f'<td class="words">{escape(value)}{lines}</td>'

        lines = [self.row(name, (cell(*row[key]) for key in columns)) for name, row in rows.items()]
        self.parts.append(rows_table(heading, columns.values(), lines))

    def differences(
        self, heading: str, columns: Mapping[str, str], rows: Mapping[str, Mapping[str, Difference]]
    ) -> None:
        """Differences of models, in points, with their intervals; nothing where there is none of these ``columns``."""
        columns = {key: title for key, title in columns.items() if any(key in row for row in rows.values())}
        if not columns:
            return

        def cell(found: Difference | None) -> str:
            if found is None:
                return "<td>–</td>"
            told = '<span class="pm">within noise</span> ' if found.noise else ""
            mark = "" if found.noise else ' class="best"'
            return (
                f"<td{mark}>{100 * found.value:+.2f} {told}"
                f'<span class="ci">{bracket((found.low, found.high), "+.2f")}</span></td>'
            )

        lines = [self.row(name, (cell(row.get(key)) for key in columns)) for name, row in rows.items()]
        self.parts.append(rows_table(heading, columns.values(), lines))

    def write(self, path: Path, tiles: str) -> None:
        sources = "".join(
            f'<li id="source{number}"><a href="{escape(url)}">{escape(url)}</a></li>'
            for url, number in self.cited.items()
        )
        models = "".join(
            f'<span class="model"><i style="background:{tint}"></i>{escape(name)}</span>'
            for name, tint in self.colours.items()
        )
        sections = "".join(self.parts)
        if sources:
            sections += f"<h2>Sources of the published figures</h2><ol>{sources}</ol>"
        write_document(path, "Facemill evaluation", f"<h1>Evaluation</h1><div>{models}</div>", tiles + sections)


def rows_table(heading: str, titles: Iterable[str], rows: Iterable[str]) -> str:
    """A table of ``rows``, which are HTML, below a heading and the titles of the other columns."""
    head = "".join(f"<th>{escape(title)}</th>" for title in (heading, *titles))
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def inline(figure: Figure) -> str:
    """A chart as a part of a page."""
    svg = io.StringIO()
    with rc_context(charts.STYLE):
        figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    return f"<figure>{svg.getvalue()[svg.getvalue().index('<svg') :]}</figure>"


def write_document(path: Path, title: str, header: str, main: str) -> None:
    """A page that needs no other file, whole or not at all; ``header`` and ``main`` are HTML."""
    html = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE.read_text()}</style></head><body><header>{header}</header><main>{main}</main></body></html>"
    )
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
