"""What an evaluation found, as one page to look at: `report.html`.

Charts first, tables after; one file, with nothing from elsewhere, in light and dark. What users
wrote (names of sets, labels, texts) is escaped wherever it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from string import Template
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sce.evaluation import svg
from sce.evaluation.evaluate import Evaluated
from sce.evaluation.metrics import ReliabilityBin, reliability
from sce.evaluation.report import (
    adapted_headline,
    beside_adapted,
    beside_cosine,
    headline,
    lines,
    tree_tables,
    verdict,
)
from sce.evaluation.summaries import Result, adapted_methods, is_own, others
from sce.evaluation.svg import Bar, Mark
from sce.evaluation.tables import Table, change, number, one_line, percent

SHOWN_SETS = 3
"""Label sets whose confusions are shown where none is the user's."""
SHOWN_PAIRS, SHOWN_TEXTS = 6, 2
"""Confusions of a set that are shown, and texts of each."""
MATRIX_LABELS = 30
SIZED_LABELS = 20
TEXT_CHARS, SET_CHARS = 220, 80
OPEN_ROWS = 15
"""A table of more rows is folded up."""
MILLION = 1_000_000
Curve = tuple[float, list[ReliabilityBin]]
"""Calibration error, mean over sets, and the bins of a reliability diagram."""
_CHARTED = {"adapted": 2, "adapted+1": 3, "adapted+8": 4}
"""Colours in the page's palette; the measured method has 0, cosine similarity 1."""


def overview(
    name: str,
    evaluated: Sequence[Evaluated],
    described: Mapping[str, Any],
    texts: bool = True,
) -> str:
    """The page of a run.

    Args:
        name: of the method, as reports call it.
        evaluated: what was measured, every set.
        described: of each method by its key: kind, model, parameters, training and answer cost.
        texts: whether some texts are shown.
    """
    page = _Page(name, evaluated, described, texts)
    template = resources.files("sce.evaluation").joinpath("overview.html")
    return Template(template.read_text(encoding="utf-8")).substitute(
        title=escape(name),
        lead=escape(page.lead()),
        tiles=page.tiles(),
        charts="\n".join(filter(None, page.charts())),
        tables="\n".join(page.tables()),
        footer=escape(page.footer()),
    )


def reliability_curves(evaluated: Sequence[Evaluated]) -> dict[str, Curve]:
    """Of the sets that the page is about, for each method by name."""
    curves = _Page("", evaluated, {}, False).curves()
    return {_called(method): curve for method, curve in curves.items()}


@dataclass(frozen=True)
class _Page:
    name: str
    evaluated: Sequence[Evaluated]
    described: Mapping[str, Any]
    texts: bool

    @property
    def results(self) -> list[Result]:
        return [one.result for one in self.evaluated]

    @property
    def main(self) -> str:
        return str(self.results[0]["method"])

    @property
    def scope(self) -> list[Evaluated]:
        """The sets that the page is about, with all that is known of their labels: the user's, else
        those that nothing was trained on, else all."""
        rich = [one for one in self.evaluated if one.result["information"] == "all"]
        rich = rich or list(self.evaluated)
        own = [one for one in rich if is_own(one.result)]
        unseen = [one for one in rich if one.result["group"] == "unseen"]
        return own or unseen or rich

    @property
    def scope_name(self) -> str:
        sets = self.scope
        rows = sum(one.result["rows"] for one in sets)
        if len(sets) == 1:
            return f"{one_line(str(sets[0].result['name']), SET_CHARS)}, {rows:,} rows"
        whose = "own" if is_own(sets[0].result) else sets[0].result["group"]
        return f"{len(sets)} {whose} label sets, {rows:,} rows"

    def methods(self) -> list[str]:
        found = dict.fromkeys(key for one in self.results for key in (self.main, *others(one)))
        return list(found)

    def colour(self, method: str) -> int:
        if method == self.main:
            return 0
        return 1 if method == "cosine" else _CHARTED.get(method, 5)

    def legend(self, methods: Sequence[str]) -> str:
        return svg.legend([(self.colour(m), _called(m)) for m in methods])

    def lead(self) -> str:
        """One sentence for who reads no more."""
        main, rows = _called(self.main), self.scope_name
        text = f"{main} answers {percent(self._mean(self.main))} % rightly ({rows})"
        if self.main != "cosine" and self._mean("cosine") is not None:
            text += f", cosine similarity {percent(self._mean('cosine'))} %"
        if (adapted := self._mean("adapted")) is not None:
            text += f", adapted labels {percent(adapted)} %"
        return text + "."

    def _mean(self, method: str, figure: str = "accuracy") -> float | None:
        """Over the sets of the scope; None where the method has not answered all."""
        found = [(one.result.get(method) or {}).get(figure) for one in self.scope]
        return None if None in found else float(np.mean(found))  # type: ignore[arg-type]

    def tiles(self) -> str:
        main, called = self.main, _called(self.main)
        tiles = [(f"{percent(self._mean(main))} %", f"right by {called}")]
        if main != "cosine" and self._mean("cosine") is not None:
            gain = (self._mean(main) or 0.0) - (self._mean("cosine") or 0.0)
            tiles.append((f"{percent(self._mean('cosine'))} %", "right by cosine similarity"))
            tiles.append((_signed(gain), f"points between the two, {called} less cosine"))
        if self._mean("adapted") is not None:
            tiles.append((f"{percent(self._mean('adapted'))} %", "right by adapted labels"))
        tiles.append((number(self._mean(main, "macro_f1"), 3), f"macro-F1 of {called}"))
        tiles.append((number(self._mean(main, "ece"), 3), "calibration error (ECE)"))
        rate = self.described[main]["cost"]["texts_per_second"]
        tiles.append((f"{rate:,.0f}", "texts a second, from the text"))
        return "".join(
            f'<div class="tile"><b>{escape(value)}</b><small>{escape(said)}</small></div>'
            for value, said in tiles
        )

    def charts(self) -> list[str]:
        accuracy, cloud = self.accuracy(), self.cloud()
        side = [self.reliability(), cloud or self.cost()]
        pair = f'<div class="pair">{"".join(side)}</div>'
        return [accuracy, pair, *self.confusions(), self.cost() if cloud else ""]

    def accuracy(self) -> str:
        bars = []
        for result in lines(self.results):
            marks = []
            for method in dict.fromkeys((self.main, *others(result))):
                figures = result.get(method)
                if not figures:
                    continue
                text = f"{percent(figures['accuracy'])}"
                compared = result if method == self.main else figures
                if method != "cosine" and compared.get("difference") is not None:
                    text += _gain(compared)
                low, high = figures.get("accuracy_low"), figures.get("accuracy_high")
                marks.append(Mark(self.colour(method), figures["accuracy"], low, high, text))
            name = one_line(str(result["name"]), SET_CHARS)
            about = f"{result['group']}, {result['labels']} labels, {result['rows']:,} rows"
            bars.append(Bar(name, about, marks))
        said = (
            "Percent right with its 95 % interval; + or −: less cosine similarity, in colour where "
            "the interval of the difference leaves 0 out."
        )
        body = self.legend(self.methods()) + svg.intervals(bars)
        return _section("Accuracy beside cosine similarity", body, said)

    def cloud(self) -> str:
        """A dot a label set, where there are many."""
        found = [r for r in self.results if r["information"] == "all" and "cosine" in r]
        if self.main == "cosine" or len(found) <= MATRIX_LABELS:
            return ""
        points = []
        for result in sorted(found, key=lambda r: r["group"] != "seen"):
            x, y = result["cosine"]["accuracy"], result[self.main]["accuracy"]
            title = f"{result['name']}: {percent(y)} %, cosine {percent(x)} %"
            points.append((1 if result["group"] == "seen" else 0, x, y, title))
        body = svg.legend([(0, "not trained on"), (1, "trained on")])
        body += svg.scatter(points, "cosine similarity, % right", f"{_called(self.main)}, % right")
        return _section("Every label set", body, f"Above the line {_called(self.main)} is better.")

    def reliability(self) -> str:
        found = self.curves()
        methods, curves = list(found), [(self.colour(m), bins) for m, (_, bins) in found.items()]
        errors = [
            f"{_called(m)} {change(self._mean(m, 'ece_uncalibrated'), self._mean(m, 'ece'), 3)}"
            for m in methods
        ]
        said = (
            f"On {self.scope_name}. On the line a probability is what it says; below it the method "
            f"is too sure. ECE before → after calibration, mean over sets: {', '.join(errors)}."
        )
        return _section("Reliability", self.legend(methods) + svg.reliability(curves), said)

    def curves(self) -> dict[str, Curve]:
        """Of the methods that answered every set of the scope."""
        tables, found = pa.concat_tables(one.predictions for one in self.scope), {}
        for method in dict.fromkeys((self.main, "cosine", "adapted")):
            if (error := self._mean(method, "ece")) is not None:
                found[method] = error, reliability_of(tables, method)
        return found

    def cost(self) -> str:
        # With examples or without, adapted labels answer in the same way.
        shown = [m for m in self.methods() if m in self.described and "+" not in m]
        slowest = min(self.described[m]["cost"]["texts_per_second"] for m in shown)
        bars = []
        for method in shown:
            cost = self.described[method]["cost"]
            for rate, from_what in (
                (cost["texts_per_second"], "from the texts"),
                (cost["embedded_texts_per_second"], "from vectors that are kept"),
            ):
                if rate:
                    text = f"{_duration(MILLION / rate)}"
                    mark = Mark(self.colour(method), slowest / rate, text=text)
                    bars.append(Bar(_called(method), from_what, [mark]))
        cost = self.described[self.main]["cost"]
        where = "a GPU" if cost["device"] == "cuda" else "this machine's CPU"
        memory, size = cost["peak_memory_bytes"] / 1e6, self.described[self.main]["parameters"]
        said = f"A million texts, one process on {where}: {memory:,.0f} MB of memory at most, "
        said += f"{size / 1e6:,.1f} M parameters."
        if (training := self.described[self.main].get("training")) and training["epochs"]:
            said += (
                f" Training took {_duration(training['seconds'])}: {training['epochs']} epochs of "
                f"{training['rows']:,} rows, {training['trainable_parameters'] / 1e6:,.1f} M "
                f"parameters trained, {training['workers']}."
            )
        return _section("Cost", svg.parts_of(bars), said)

    def confusions(self) -> list[str]:
        """What is taken for what: of the user's sets, or of the largest ones."""
        sets = self.scope
        if not is_own(sets[0].result):
            sets = sorted(sets, key=lambda one: -one.result["rows"])[:SHOWN_SETS]
        count = SHOWN_TEXTS if self.texts else 0
        shown = "".join(_confusion(one, self.main, count) for one in sets)
        said = f"Answers of {_called(self.main)} with all that is known of the labels"
        said += ", and texts of which it was surest" if self.texts else ""
        said += "; below, the labels' sizes, in full colour what was answered rightly."
        if len(sets) < len(self.scope):
            said += f" The largest of {len(self.scope)} {sets[0].result['group']} sets."
        return [_section("What is taken for what", shown, said)]

    def tables(self) -> list[str]:
        results = self.results
        found = [beside_cosine(results, show_all=True)]
        if any(map(adapted_methods, results)):
            found.append(beside_adapted(results, show_all=True))
        found += tree_tables(results)
        return [_table(table) for table in found]

    def footer(self) -> str:
        main = self.described[self.main]
        note = f" {main['note']}." if main.get("note") else ""
        said = " ".join(filter(None, (headline(self.results), adapted_headline(self.results))))
        return f"{main['title']}: {main['model']}, seed {main['seed']}.{note} {said}"


def reliability_of(predictions: pa.Table, method: str) -> list[ReliabilityBin]:
    """Of the best labels that a method gave to some rows of `PREDICTIONS`."""
    mine = predictions.filter(pc.equal(predictions["method"], method))
    right_N = pc.equal(mine["target"], mine["predicted"]).to_numpy()
    return reliability(mine["probability"].to_numpy(), right_N)


def _confusion(one: Evaluated, method: str, texts: int) -> str:
    """The matrix of a set, and its most frequent confusions with so many texts that show them:
    those of which the method was surest."""
    result, names = one.result, one.label_names
    wrong_KK = one.confusion_KK.copy()
    np.fill_diagonal(wrong_KK, 0)
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:SHOWN_PAIRS]
    pairs = [(int(i) // len(names), int(i) % len(names)) for i in order]
    mine = one.predictions.filter(pc.equal(one.predictions["method"], method))
    targets, guesses = mine["target"].to_pylist(), mine["predicted"].to_pylist()
    sure = mine["probability"].to_pylist()
    items = []
    for i, j in pairs:
        if not wrong_KK[i, j]:
            break
        rows = [n for n in range(len(mine)) if (targets[n], guesses[n]) == (names[i], names[j])]
        rows = sorted(rows, key=lambda n: -sure[n])[:texts]
        quotes = "".join(
            f"<q>{escape(one_line(one.texts[n], TEXT_CHARS))} <small>{sure[n]:.0%} sure</small></q>"
            for n in rows
        )
        share = wrong_KK[i, j] / one.confusion_KK[i].sum()
        items.append(
            f"<li><b>{escape(names[i])}</b> taken for <b>{escape(names[j])}</b> "
            f"<small>{wrong_KK[i, j]:,} of {one.confusion_KK[i].sum():,} rows, {share:.0%}</small>"
            f"{quotes}</li>"
        )
    matrix = ""
    if len(names) <= MATRIX_LABELS:
        matrix = svg.confusion(one.confusion_KK, names)
    elif items:
        matrix = (
            f'<p class="muted">{len(names)} labels: too many for a matrix that can be read.</p>'
        )
    found = f'<ol class="pairs">{"".join(items)}</ol>' if items else "<p>Nothing was wrong.</p>"
    title = f"{one_line(str(result['name']), SET_CHARS)} ({result['group']})"
    return (
        f'<div class="set"><h3>{escape(title)}</h3><div class="mixed"><div>{matrix}{_sizes(one)}'
        f"</div><div>{found}</div></div></div>"
    )


def _sizes(one: Evaluated) -> str:
    """Rows of each label of a set, and how many of them were right; the largest labels."""
    totals, right = one.confusion_KK.sum(axis=1), np.diag(one.confusion_KK)
    order = np.argsort(-totals, kind="stable")
    bars = []
    for i in order[:SIZED_LABELS]:
        share = right[i] / totals[i] if totals[i] else 0.0
        text = f"{right[i]:,} of {totals[i]:,} right ({share:.0%})" if totals[i] else "no rows"
        most = max(totals.max(), 1)
        marks = [Mark(0, totals[i] / most, text=text), Mark(0, right[i] / most)]
        bars.append(Bar(one_line(one.label_names[i], svg.NAME_CHARS), "", marks))
    rest = order[SIZED_LABELS:]
    more = f'<p class="muted">And {len(rest)} labels with {totals[rest].sum():,} rows.</p>'
    return svg.parts_of(bars) + (more if len(rest) else "")


def _gain(figures: Mapping[str, Any]) -> str:
    """Less cosine similarity, in colour where that is clear."""
    won = verdict(figures)
    kind = {1: ' class="good"', -1: ' class="bad"'}.get(won or 0, "")
    return f" <span{kind}>{_signed(figures['difference'])}</span>"


def _signed(share: float) -> str:
    return percent(share, "+").replace("-", "−")


def _called(method: str) -> str:
    return "SCE" if method == "sce" else method


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:,.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _section(title: str, body: str, said: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p class="muted">{escape(said)}</p>{body}</section>'


def _table(table: Table) -> str:
    body = (
        f'<div class="scroll">{table.to_html()}</div><p class="muted">{escape(table.caption)}</p>'
    )
    title = escape(table.title)
    if len(table.rows) > OPEN_ROWS:
        body = f"<details><summary>All {len(table.rows)} lines</summary>{body}</details>"
    return f"<section><h2>{title}</h2>{body}</section>"
