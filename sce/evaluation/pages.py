"""A report of tables and charts: Markdown with pictures, one HTML file, a CSV for each table."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sce.evaluation.plots import save
from sce.evaluation.tables import Table

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child, .left { text-align: left; }
tr.heading td { font-weight: bold; text-align: left; border-bottom: 2px solid #888; }
.caption { opacity: .75; font-size: .9em; }
svg, img { max-width: 100%; height: auto; background: white; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6em .8em; background: #8882; }
:root { color-scheme: light dark; }"""


def write_report(
    title: str, tables: Sequence[Table], charts: Mapping[str, Figure], folder: Path, stem: str
) -> dict[str, Path]:
    """Write STEM.md with charts/*.png, STEM.html with everything inside, a CSV for each table.
    Returns the paths of the first two, by "markdown" and "html"."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in charts.items():
        save(figure, folder / "charts" / f"{name}.png")
    for table in tables:
        (folder / f"{table.name}.csv").write_text(table.to_csv(), encoding="utf-8")
    found = {"markdown": folder / f"{stem}.md", "html": folder / f"{stem}.html"}
    found["markdown"].write_text(report_markdown(title, tables, list(charts)), encoding="utf-8")
    found["html"].write_text(report_html(title, tables, charts), encoding="utf-8")
    return found


def report_markdown(title: str, tables: Sequence[Table], charts: Sequence[str] = ()) -> str:
    parts = [f"# {title}"]
    parts += [f"## {t.title}\n\n{t.to_markdown()}\n\n{t.caption} {t.note}" for t in tables]
    parts += [f"![{name.replace('_', ' ')}](charts/{name}.png)" for name in charts]
    return "\n\n".join(parts) + "\n"


def report_html(title: str, tables: Sequence[Table], charts: Mapping[str, Figure]) -> str:
    """One file, without anything from elsewhere: charts first, tables after."""
    parts = []
    for name, figure in charts.items():
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg")
        svg = drawn.getvalue()
        parts.append(f"<h2>{html.escape(name.replace('_', ' '))}</h2>\n{svg[svg.index('<svg') :]}")
    for table in tables:
        caption = html.escape(f"{table.caption} {table.note}")
        parts.append(f"<h2>{html.escape(table.title)}</h2>\n{table.to_html()}")
        parts.append(f'<p class="caption">{caption}</p>')
    return html_page(title, parts)


def html_page(title: str, parts: Sequence[str]) -> str:
    """A page around parts that are HTML already; the title is text."""
    shown = html.escape(title)
    head = (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{shown}</title>'
        '\n<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"\n<style>{_STYLE}</style></head>\n<body>\n<h1>{shown}</h1>\n"
    )
    return head + "\n".join(parts) + "\n</body></html>\n"
