"""Renders a comparison: terminal, Markdown, CSV, one HTML file with its charts inside."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from sce.evaluation import plots
from sce.evaluation.tables import Table

TITLE = "Comparison of methods"
_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
tr.heading td { font-weight: bold; text-align: left; border-bottom: 2px solid #888; }
.caption { opacity: .75; font-size: .9em; }
svg { max-width: 100%; height: auto; background: white; }
:root { color-scheme: light dark; }"""


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """By default on standard error; standard output is left to a job's closing line. What was run
    stands once, at the end."""
    console = console or Console(stderr=True)
    for table in tables:
        shown = RichTable(
            title=table.title, caption=Text(table.caption), title_style="bold",
            padding=(0, 1, 0, 0),
        )  # fmt: skip
        for i, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in table.rows:
            if len(row) == 1:
                shown.add_section()
                shown.add_row(f"[bold]{escape(row[0])}[/]")
            else:
                shown.add_row(*map(escape, row))
        console.print(shown)
    for line in dict.fromkeys(line for table in tables for line in table.measured.split("; ")):
        console.print(Text(line))


def write_report(
    tables: Sequence[Table], charts: Mapping[str, Figure], folder: Path
) -> dict[str, Path]:
    """Write compare.md with charts/*.png, compare.html and a CSV for each table.

    Returns:
        The paths of the Markdown and HTML files, by "markdown" and "html".
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in charts.items():
        plots.save(figure, folder / "charts" / f"{name}.png")
    for table in tables:
        (folder / f"{table.name}.csv").write_text(to_csv(table), encoding="utf-8")
    found = {"markdown": folder / "compare.md", "html": folder / "compare.html"}
    found["markdown"].write_text(to_markdown(tables, list(charts)), encoding="utf-8")
    found["html"].write_text(to_html(tables, charts), encoding="utf-8")
    return found


def to_csv(table: Table) -> str:
    """Headings fill a first column "group"."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    grouped = any(len(row) == 1 for row in table.rows)
    writer.writerow((["group"] if grouped else []) + table.columns)
    heading = ""
    for row in table.rows:
        if len(row) == 1:
            heading = row[0]
        else:
            writer.writerow(([heading] if grouped else []) + row)
    return lines.getvalue()


def to_markdown(tables: Sequence[Table], charts: Sequence[str] = ()) -> str:
    parts = [f"# {TITLE}"]
    for table in tables:
        rows = [table.columns, ["---", *("---:" for _ in table.columns[1:])]]
        for row in table.rows:
            cells = [cell.replace("|", "\\|") for cell in row]
            if len(cells) == 1:
                cells = [f"**{cells[0]}**"] + [""] * (len(table.columns) - 1)
            rows.append(cells)
        lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts.append(f"## {table.title}\n\n{lines}\n\n{table.caption} {table.measured}")
    parts += [f"![{name.replace('_', ' ')}](charts/{name}.png)" for name in charts]
    return "\n\n".join(parts) + "\n"


def to_html(tables: Sequence[Table], charts: Mapping[str, Figure]) -> str:
    """One file, without anything from elsewhere."""
    parts = [f"<h1>{TITLE}</h1>"]
    for table in tables:
        parts.append(f"<h2>{html.escape(table.title)}</h2>\n<table>")
        parts.append(_row(table.columns, "th"))
        for row in table.rows:
            if len(row) == 1:
                width = len(table.columns)
                parts.append(
                    f'<tr class="heading"><td colspan="{width}">{html.escape(row[0])}</td></tr>'
                )
            else:
                parts.append(_row(row, "td"))
        caption = html.escape(f"{table.caption} {table.measured}")
        parts.append(f'</table>\n<p class="caption">{caption}</p>')
    for name, figure in charts.items():
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg")
        svg = drawn.getvalue()
        parts.append(f"<h2>{html.escape(name.replace('_', ' '))}</h2>\n{svg[svg.index('<svg') :]}")
    head = (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{TITLE}</title>'
        f"\n<style>{_STYLE}</style></head>\n<body>\n"
    )
    return head + "\n".join(parts) + "\n</body></html>\n"


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
