"""The report of an adaptation for people: in the terminal, as Markdown, as one HTML page, and the
file to fill in.

What it says stands in `sce.adaptation`; it is laid out here, because adaptation may not import the
tables and pages of `sce.evaluation`, which stands beside it.

Texts are the users': everything is escaped, and shortened with a mark where it is long.
"""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from sce.adaptation.artefact import REPORT_PAGE, AdaptedLabels
from sce.adaptation.illustration import Illustration
from sce.adaptation.pictures import change_of, corpus_figure, shares_figure
from sce.adaptation.report import Report, headline, sentences
from sce.bulk.display import one_line
from sce.evaluation.pages import html_page
from sce.evaluation.plots import save
from sce.evaluation.tables import Cell, Table, bounds, escape_markdown, percent

MARKDOWN_FILE, CHARTS_FOLDER, TO_LABEL_FILE = "report.md", "charts", "to_label.jsonl"
ARTIFACTS = (MARKDOWN_FILE, REPORT_PAGE, CHARTS_FOLDER, TO_LABEL_FILE)
"""What `write_report` writes, for an experiment tracker to keep."""
TITLE = "Labels adapted to a corpus"
TERMINAL_LABELS, TERMINAL_EXAMPLES = 20, 6
OPEN_LABELS = 8
"""With more labels the page shows their texts when asked."""
_LINE_CHARS = 3000
_NAME_CHARS, _TERMINAL_NAME_CHARS, _TEXT_CHARS, _TERMINAL_TEXT_CHARS = 60, 18, 300, 44
_ALT = {"corpus": "The corpus in a plane, with the labels' old and new places",
        "shares": "Each label's share of the corpus before and after"}  # fmt: skip


class Commands(NamedTuple):
    """What a user may run next, as it would be typed.

    Attributes:
        folder: of the adapted labels.
        adapt: the command that made this fit, without `--labelled`.
        classify: the command that answers the corpus with it.
    """

    folder: str
    adapt: str
    classify: str


class Step(NamedTuple):
    """What to do next, and with which command."""

    said: str
    command: str = ""


def to_terminal(
    adapted: AdaptedLabels, illustration: Illustration, commands: Commands, console: Console
) -> None:
    """Print the report: of many labels the 20 whose share changed most; fits 80 columns."""
    report = adapted.report
    console.print(Text(headline(report), style="bold"))
    for line in _lines(report):
        console.print(Text(f"- {line}"))
    ranked = _ranked(report)
    console.print(_terminal_labels(report, ranked[:TERMINAL_LABELS]))
    page = f"{commands.folder.rstrip('/')}/{REPORT_PAGE}"
    if (more := len(ranked) - TERMINAL_LABELS) > 0:
        console.print(Text(f"{more:,} more labels, which changed less, stand in {page}."))
    if report["choice"] is not None:
        console.print(_choice_table(report))
    names = [label["name"] for label in ranked if label["name"] in illustration.typical]
    if names:
        console.print(_terminal_texts(illustration, names[:TERMINAL_EXAMPLES]))
    for step in next_steps(adapted, illustration, commands):
        console.print(Text(step.said))
        if step.command:
            # A command is one line, to be copied whole.
            console.print(Text(f"  {step.command}", style="bold"), soft_wrap=True)
    console.print(Text(f"Pictures and texts of each label: {page}"))


def to_markdown(adapted: AdaptedLabels, illustration: Illustration, commands: Commands) -> str:
    """The whole report in GitHub Markdown, with the pictures that `write_report` writes."""
    report = adapted.report
    parts = [f"# {TITLE}", f"**{escape_markdown(headline(report))}**"]
    parts.append("\n".join(f"- {escape_markdown(line)}" for line in _lines(report)))
    for table in _tables(report):
        parts += [f"## {table.title}", table.to_markdown(literal=True), table.caption]
    parts += [f"![{_ALT[name]}]({CHARTS_FOLDER}/{name}.png)" for name in _chart_names(illustration)]
    if illustration.typical:
        texts = _texts_table(illustration)
        parts += [f"## {texts.title}", texts.to_markdown(literal=True), texts.caption]
    parts.append("## What to do next")
    for step in next_steps(adapted, illustration, commands):
        parts.append(escape_markdown(step.said))
        if step.command:
            parts.append(f"```\n{step.command}\n```")
    return "\n\n".join(filter(None, parts)) + "\n"


def write_report(
    folder: Path,
    adapted: AdaptedLabels,
    illustration: Illustration,
    commands: Commands,
    labelled: Sequence[tuple[str, str]] = (),
) -> None:
    """Write report.md, charts/*.png, report.html with everything inside, and to_label.jsonl.

    Args:
        folder: of this machine; made if it is not there.
        labelled: texts and the labels that the user gave them. They stand at the head of the file
            to fill in, so that it can be filled in round after round and nothing gets lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"corpus": corpus_figure, "shares": lambda _: shares_figure(adapted.report)}
    charts = {}
    for name in _chart_names(illustration):
        path = save(figures[name](illustration), folder / CHARTS_FOLDER / f"{name}.png")
        charts[name] = path.read_bytes()
    pages = {
        MARKDOWN_FILE: to_markdown(adapted, illustration, commands),
        REPORT_PAGE: _to_html(adapted, illustration, commands, charts),
        TO_LABEL_FILE: _to_fill_in(illustration, labelled),
    }
    for file, content in pages.items():
        (folder / file).write_text(content, encoding="utf-8")


def next_steps(
    adapted: AdaptedLabels, illustration: Illustration, commands: Commands
) -> list[Step]:
    """What a user may do with a fit, or do to make it better."""
    steps, report, asked = [], adapted.report, len(illustration.to_label)
    if asked:
        drawn = len(illustration.at_random)
        what = 'Write into "label" what each one is, leave empty what none of the labels fits,'
        if all(question.text is None for question in illustration.to_label):
            what = 'Write the text of each id into "text" and what it is into "label",'
        said = (
            f"{TO_LABEL_FILE} holds the {asked} texts whose labels would teach most and {drawn} "
            f"drawn at random, so that the accuracy is not measured on doubtful ones alone. {what} "
            "and fit again:"
        )
        file = shlex.quote(f"{commands.folder.rstrip('/')}/{TO_LABEL_FILE}")
        steps.append(Step(said, f"{commands.adapt} --labelled {file}"))
    if any(label["seems_absent"] for label in report["labels"]):
        steps.append(
            Step(
                "A label that seems to have no text can stay, and keeps its own vector. If it "
                "should have some, give it a description, synonyms or examples in the labels file."
            )
        )
    steps.append(Step("Answer the corpus, or any texts, with these labels:", commands.classify))
    return steps


def _lines(report: Report) -> list[str]:
    return [one_line(line, _LINE_CHARS) for line in sentences(report)]


def _ranked(report: Report) -> list[Report]:
    return sorted(report["labels"], key=lambda label: (-abs(change_of(label)), label["name"]))


def _terminal_labels(report: Report, labels: Sequence[Report]) -> Table:
    measured = any(label["agreement"] is not None for label in report["labels"])
    labelled = any(label["rows"] for label in report["labels"])
    rows: list[list[Cell]] = []
    for label in labels:
        name = one_line(label["name"], _TERMINAL_NAME_CHARS)
        source = label["took_from"]
        rows.append(
            [
                Text(name, "yellow" if label["seems_absent"] else ""),
                _shares(label),
                f"{label['moved']:.2f}",
                *([percent(label["agreement"])] if measured else []),
                *([f"{label['rows']:,}"] if labelled else []),
                "" if source is None else one_line(source, _TERMINAL_NAME_CHARS),
            ]
        )
    columns = ["label", "share", "moved", *["agreed"] * measured, *["labelled"] * labelled]
    return Table(
        [*columns, "took most from"],
        rows,
        "Labels: share of the texts in per cent, before → after",
        left=("label", "took most from"),
        wrap=False,
    )


def _terminal_texts(illustration: Illustration, names: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for name in names:
        best = illustration.typical[name][0]
        label = one_line(name, _TERMINAL_NAME_CHARS)
        rows.append([label, one_line(_shown(best), _TERMINAL_TEXT_CHARS)])
        for moved in illustration.moved.get(name, [])[:1]:
            source = f"  ← {one_line(moved.from_label, _TERMINAL_NAME_CHARS)}"
            rows.append([Text(source, "dim"), one_line(_shown(moved), _TERMINAL_TEXT_CHARS)])
    title = "A typical text of each label, and one that came from another (←)"
    return Table(["label", "text"], rows, title, left=("label", "text"))


def _tables(report: Report) -> list[Table]:
    rows: list[list[Cell]] = []
    for label in _ranked(report):
        note = "" if label["adapted"] else "keeps its own vector"
        rows.append(
            [
                one_line(label["name"], _NAME_CHARS),
                _shares(label),
                f"{label['moved']:.2f}",
                one_line(label["towards"] or "", _NAME_CHARS),
                one_line(label["took_from"] or "", _NAME_CHARS),
                percent(label["took"]),
                percent(label["agreement"]),
                f"{label['presence']:.2f}",
                f"{label['rows']:,}",
                "seems to have no text" if label["seems_absent"] else note,
            ]
        )
    labels = Table(
        ["label", "share", "moved", "towards", "took most from", "of the texts", "agreed",
         "presence", "labelled rows", "note"],
        rows,
        "Labels",
        "Shares of the texts in per cent, before → after. Moved: 1 - cosine between the label's "
        "own vector and the middle of its texts; towards: the other label that this went to. "
        "Agreed: per cent of the label's texts on which two halves of the corpus, each fitted "
        "alone, agree. Presence: how much of the corpus says what the label says, read before the "
        "fit.",
        left=("label", "towards", "took most from", "note"),
    )  # fmt: skip
    return [labels] if report["choice"] is None else [labels, _choice_table(report)]


def _choice_table(report: Report) -> Table:
    choice = report["choice"]
    rows: list[list[Cell]] = [
        [
            f"{fit['trust']}{' (chosen)' if fit['trust'] == choice['chosen'] else ''}",
            percent(fit["accuracy"]) + bounds(fit["low"], fit["high"]),
            "–"
            if fit["trust"] == "none"
            else percent(fit["gain"], "+") + bounds(fit["gain_low"], fit["gain_high"], "+"),
        ]
        for fit in choice["fits"]
    ]
    return Table(
        ["trust", "accuracy", "gain"],
        rows,
        f"Accuracy on {choice['rows']:,} labelled rows",
        "Per cent right; gain over the labels' own vectors (none) on the same rows. [low, high]: "
        "95 % interval.",
        wrap=False,
    )


def _texts_table(illustration: Illustration) -> Table:
    rows: list[list[Cell]] = []
    for name in illustration.names:
        if name not in illustration.typical:
            continue
        rows.append([one_line(name, _NAME_CHARS)])
        for example in illustration.typical[name]:
            shown = one_line(_shown(example), _TEXT_CHARS)
            rows.append([shown, "", f"{example.probability:.2f}"])
        for moved in illustration.moved.get(name, []):
            shown = one_line(_shown(moved), _TEXT_CHARS)
            source = one_line(moved.from_label, _NAME_CHARS)
            rows.append([shown, source, f"{moved.probability:.2f}"])
    return Table(
        ["text", "came from", "probability"],
        rows,
        "Typical texts, and texts that moved",
        f"Of a sample of {len(illustration):,} rows. Came from: the label whose own vector was "
        "nearest before.",
        left=("text", "came from"),
    )


def _to_html(
    adapted: AdaptedLabels,
    illustration: Illustration,
    commands: Commands,
    charts: dict[str, bytes],
) -> str:
    report = adapted.report
    parts = [f"<p><strong>{html.escape(headline(report))}</strong></p>", "<ul>"]
    parts += [f"<li>{html.escape(line)}</li>" for line in _lines(report)]
    parts.append("</ul>")
    parts += [_section(table) for table in _tables(report)]
    for name, content in charts.items():
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        parts.append(f'<p><img src="{source}" alt="{html.escape(_ALT[name])}"></p>')
    if illustration.typical:
        texts = _texts_table(illustration)
        unfolded = " open" if len(illustration.names) <= OPEN_LABELS else ""
        parts.append(f"<h2>{html.escape(texts.title)}</h2>")
        parts.append(f"<details{unfolded}><summary>{html.escape(texts.caption)}</summary>")
        parts.append(f"{texts.to_html()}</details>")
    parts.append("<h2>What to do next</h2>")
    for step in next_steps(adapted, illustration, commands):
        parts.append(f"<p>{html.escape(step.said)}</p>")
        if step.command:
            parts.append(f"<pre>{html.escape(step.command)}</pre>")
    return html_page(TITLE, parts)


def _section(table: Table) -> str:
    caption = f'<p class="caption">{html.escape(table.caption)}</p>'
    return f"<h2>{html.escape(table.title)}</h2>\n{table.to_html()}\n{caption}"


def _to_fill_in(illustration: Illustration, labelled: Sequence[tuple[str, str]]) -> str:
    rows: list[dict[str, str | None]] = [
        {"id": None, "text": text, "label": label, "answer": None, "second": None}
        for text, label in labelled
    ]
    rows += [
        {"id": q.id, "text": q.text, "label": "", "answer": q.answer, "second": q.second}
        for q in (*illustration.to_label, *illustration.at_random)
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _chart_names(illustration: Illustration) -> list[str]:
    return ["corpus", "shares"] if len(illustration) else ["shares"]


def _shares(label: Report) -> str:
    return f"{percent(label['mass_before'])} → {percent(label['mass_after'])}"


def _shown(row: tuple[str, str | None, *tuple[object, ...]]) -> str:
    """The text, or the id where there is none."""
    identity, text = row[:2]
    return identity if text is None else text
