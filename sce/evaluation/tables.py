"""A table of text: every table that a person reads is one of these, whether in a terminal, as
Markdown, CSV or HTML.

    table = Table(["set", "rows"], [["news", "1,200"]], title="Rows by set")
    Console(stderr=True).print(table)
    table.to_markdown()
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

Cell = str | Text | None


@dataclass(frozen=True)
class Table:
    """Columns and rows of cells; `console.print(table)` shows it in a terminal.

    A cell is text, or rich's `Text` where it has a style in the terminal. None stands for what no
    text may be mistaken for and is written as `missing` in italics. A row of one cell is the
    heading of the rows that follow, an empty row a line between two groups of rows.

    Attributes:
        left: names of the columns that are set left, numbers being set right; by default the first.
        wrap: whether columns that are set right may be broken where the terminal is narrow.
        caption: what the cells mean.
        name: of its file in a report.
        note: what a report adds to the caption.
    """

    columns: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    caption: str = ""
    left: Collection[str] | None = None
    wrap: bool = True
    missing: str = ""
    name: str = ""
    note: str = ""

    def __rich__(self) -> RichTable:
        table = RichTable(
            title=self.title or None,
            caption=Text(self.caption) if self.caption else None,
            title_style="bold",
            padding=(0, 1, 0, 0),
        )
        for column, left in zip(self.columns, self._left, strict=True):
            table.add_column(
                self._styled(column),
                justify="left" if left else "right",
                overflow="fold",
                no_wrap=not (left or self.wrap),
            )
        for row in self.rows:
            if len(row) < min(2, len(self.columns)):
                table.add_section()
            if row:
                style = "bold" if self._is_heading(row) else None
                table.add_row(*map(self._styled, row), style=style)
        return table

    def to_markdown(self, literal: bool = False) -> str:
        """The table in GitHub Markdown, without title, caption and a last line break.

        Args:
            literal: the cells are texts of users, of which no sign may be read as Markdown.
        """
        escape = escape_markdown if literal else _escape_pipes

        def cells(row: Sequence[Cell]) -> list[str]:
            if self._is_heading(row):
                return [f"**{escape(str(row[0]))}**", *[""] * (len(self.columns) - 1)]
            return [f"*{self.missing}*" if c is None else escape(str(c)) for c in row]

        rule = ["---" if left else "---:" for left in self._left]
        lines = [cells(self.columns), rule, *map(cells, filter(len, self.rows))]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def to_csv(self) -> str:
        """Headings fill a first column "group"."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        grouped = any(map(self._is_heading, self.rows))
        writer.writerow([*["group"] * grouped, *map(self._plain, self.columns)])
        heading = ""
        for row in filter(len, self.rows):
            if self._is_heading(row):
                heading = str(row[0])
            else:
                writer.writerow([*[heading] * grouped, *map(self._plain, row)])
        return lines.getvalue()

    def to_html(self) -> str:
        lines = []
        for row in filter(len, [self.columns, *self.rows]):
            tag, style, width = "th" if row is self.columns else "td", "", ""
            if self._is_heading(row):
                style, width = ' class="heading"', f' colspan="{len(self.columns)}"'
            # The first column is set left as it is, by the page's style.
            sides = [' class="left"' if left and i else "" for i, left in enumerate(self._left)]
            cells = [
                f"<{tag}{width}{side}>{html.escape(self._plain(cell))}</{tag}>"
                for cell, side in zip(row, sides)
            ]
            lines.append(f"<tr{style}>{''.join(cells)}</tr>\n")
        return f"<table>\n{''.join(lines)}</table>"

    def _plain(self, cell: Cell) -> str:
        return self.missing if cell is None else str(cell)

    def _styled(self, cell: Cell) -> Text:
        if cell is None:
            return Text(self.missing, "italic")
        return cell if isinstance(cell, Text) else Text(cell)

    @property
    def _left(self) -> list[bool]:
        if self.left is None:
            return [i == 0 for i in range(len(self.columns))]
        return [column in self.left for column in self.columns]

    def _is_heading(self, row: Sequence[Cell]) -> bool:
        return len(row) == 1 < len(self.columns)


def one_line(text: str, chars: int) -> str:
    """What users wrote, on one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= chars else line[: chars - 1] + "…"


def percent(share: float | None, sign: str = "") -> str:
    return "–" if share is None else f"{100 * share:{sign}.1f}"


def bounds(low: float | None, high: float | None, sign: str = "") -> str:
    """An interval to stand behind its figure, in per cent; nothing where there is none."""
    if low is None or high is None:
        return ""
    return f" [{percent(low, sign)}, {percent(high, sign)}]"


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def change(before: float | None, after: float | None, digits: int) -> str:
    """A figure before and after calibration, or alone."""
    if before is None:
        return number(after, digits)
    return f"{number(before, digits)} → {number(after, digits)}"


def escape_markdown(text: str) -> str:
    """Text as GitHub Markdown shows it to the letter, on one line, in a table too."""
    line = " ".join(text.split())
    return re.sub(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def _escape_pipes(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
