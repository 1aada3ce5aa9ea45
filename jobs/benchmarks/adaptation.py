"""What a corpus teaches its labels: accuracy of adapted labels beside cosine similarity and SCE.

Labelled sets are bent into the corpora that users have (few rows, skewed, labels without texts,
texts without labels), labels are fitted to the texts alone, and the answers are counted against the
labels that were hidden. The inbox and the starter corpus ship; other sets are files
`<name>.jsonl(.gz)` with `text` and `label` in the folder that `data` names.

Shapes: N rows, K labels, D the embedder's dimension.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from jobs.benchmarks.corpora import (
    SETS,
    Bench,
    Corpus,
    accuracy,
    bent,
    inbox,
    read_set,
    some_of_each,
)
from jobs.benchmarks.examples_picture import save_picture
from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import Figure, Figures, markdown_table
from sce.datasets.starter import read_starter
from sce.embedding.settings import EmbedderConfig
from sce.errors import DataError
from sce.evaluation.metrics import ece
from sce.labels import only_names
from sce.model.calibration import Temperature
from sce.model.label_vectors import label_vectors
from sce.predictor import Predictor
from sce.storage import Place

ACROSS = (
    "argument_type",
    "diary_line_emotion",
    "film_review_sentiment",
    "forum_comment_moderation",
    "gadget_review_sentiment",
    "poem_line_mood",
    "remark_sincerity",
    "request_politeness",
    "social_post_feeling",
    "stance_on_proposal",
    "supportive_reply_type",
    "text_purpose_and_reader",
    "ticket_urgency",
    "utterance_speech_act",
)
"""Training label sets of the starter corpus that lie across its topics; each is fitted to all of
its training texts."""
EXAMPLES = (1, 2, 4, 8, 16)


class AdaptationBenchmark(Benchmark):
    """Settings of `benchmark.py adaptation`."""

    data: Path | None = None
    """Folder with the development sets; without it the inbox and the starter corpus alone."""
    sets: dict[str, int] = SETS
    """Sets, and how many rows of each at most."""
    sections: list[str] = [
        "sets", "cases", "inbox", "across", "labelled", "examples", "halves", "ece"
    ]  # fmt: skip
    seeds: int = 2
    """Draws of each bent case, and of the examples."""
    labelled_rows: int = 50
    model: str | None = None
    """A trained model of the embedder, to measure SCE and its calibration beside."""
    embedder: EmbedderConfig = EmbedderConfig()
    cache: Path = Path("runs/benchmark-adaptation")
    """Where vectors are kept."""
    output: Place | None = None
    """Also write the tables to this Markdown file."""
    picture: Path | None = None
    """Also draw accuracy over examples, and gain over rows of the sets across the grain: a PNG."""


def benchmark_adaptation(config: AdaptationBenchmark) -> Measured:
    """Print every table that is asked for. Accuracies on the sets, gains by case and the seconds of
    each section are figures; the others are in the last line alone.

    Raises:
        DataError: a set is not in `data`.
    """
    bench, data = Bench(config.cache, config.embedder), config.data
    sets = [read_set(bench, data, *one) for one in config.sets.items()] if data else []
    measures: dict[str, Callable[..., tuple[str, Any]]] = {
        "sets": measure_sets,
        "cases": measure_cases,
        "inbox": measure_inbox,
        "across": measure_across,
        "labelled": measure_labelled,
        "examples": measure_examples,
        "halves": measure_halves,
        "ece": measure_ece,
    }
    found: dict[str, Any] = {}
    for section in config.sections:
        if section not in measures:
            raise DataError(f"sections: {section!r} is none of {', '.join(measures)}.")
        started = time.perf_counter()
        table, figures = measures[section](bench, sets, config)
        print(f"\n## {section}\n\n{table}", flush=True)
        found[section] = figures | {"seconds": round(time.perf_counter() - started)}
    if config.picture is not None:
        save_picture(config.picture, found.get("examples", {}), found.get("across", {}))
    return Measured(_figures(found), arithmetic_of(embedder=bench.embedder), details=found)


def _figures(found: dict[str, Any]) -> Figures:
    seconds = {name: Figure.of(one["seconds"], "s", "less") for name, one in found.items()}
    figures: Figures = {"sections": {name: {"seconds": one} for name, one in seconds.items()}}
    for name, values in found.get("sets", {}).items():
        if name != "seconds":
            columns = ("cosine", "SCE", "adapted") if len(values) == 3 else ("cosine", "adapted")
            cells = {column: Figure.of(value, "%") for column, value in zip(columns, values)}
            figures.setdefault("accuracy, %", {})[name] = dict(cells)
    for case, gains in found.get("cases", {}).items():
        if case != "seconds":
            gain = Figure.of(float(np.mean(list(gains.values()))), "points")
            figures.setdefault("gain over cosine", {})[case] = {"mean of the sets": gain}
    return figures


def measure_sets(bench: Bench, sets: list[Corpus], config: AdaptationBenchmark) -> tuple[str, Any]:
    """Each set as it is, its labels by name: cosine, SCE where there is a model, adapted."""
    predictor = _predictor(bench, config)
    figures = {}
    for corpus in sets:
        values = [bench.cosine(corpus)]
        if predictor is not None:
            scores_NK = predictor.probabilities(corpus.vectors_ND, corpus.labels)
            values.append(accuracy(scores_NK, corpus.targets_N))
        values.append(accuracy(bench.adapt(corpus).scores(corpus.vectors_ND), corpus.targets_N))
        figures[corpus.name] = values
    rows = [[name, *(f"{v:.1f}" for v in values)] for name, values in figures.items()]
    if figures:
        mean = np.mean(list(figures.values()), axis=0)
        rows.append(["mean", *(f"{v:.1f}" for v in mean)])
    names = ["cosine", *(["SCE"] if predictor else []), "adapted"]
    return markdown_table(["set, by name", *names], rows), figures


def measure_cases(bench: Bench, sets: list[Corpus], config: AdaptationBenchmark) -> tuple[str, Any]:
    """Gain of the default fit over cosine by name, on every bent corpus."""
    gains: dict[str, dict[str, list[float]]] = {}
    for corpus in sets:
        for seed in range(config.seeds):
            for case, one in bent(corpus, seed):
                fitted = bench.adapt(one).scores(one.vectors_ND)
                gain = accuracy(fitted, one.targets_N) - bench.cosine(one)
                gains.setdefault(case, {}).setdefault(corpus.name, []).append(gain)
    rows, figures = [], {}
    for case, by_set in gains.items():
        means = {name: float(np.mean(values)) for name, values in by_set.items()}
        worst = min(means, key=means.__getitem__)
        rows.append([case, _signed(np.mean(list(means.values()))), _signed(means[worst]), worst])
        figures[case] = means
    return markdown_table(["corpus", "mean gain", "worst", "of"], rows), figures


def measure_inbox(bench: Bench, sets: list[Corpus], config: AdaptationBenchmark) -> tuple[str, Any]:
    """Accuracy on the inbox, by name and with all information."""
    rows, figures = [], {}
    for corpus in inbox(bench):
        for kind, labels in (("name", only_names(corpus.labels)), ("all", corpus.labels)):
            if kind == "all" and labels == only_names(labels):
                continue
            one = Corpus(corpus.name, corpus.vectors_ND, corpus.targets_N, labels)
            fitted = bench.adapt(one)
            values = [bench.cosine(one), accuracy(fitted.scores(one.vectors_ND), one.targets_N)]
            row = [f"{corpus.name}, {kind}", *(f"{v:.1f}" for v in values)]
            rows.append([*row, _signed(values[1] - values[0]), fitted.report["trust"]])
            figures[f"{corpus.name}/{kind}"] = values
    return markdown_table(["inbox", "cosine", "adapted", "gain", "trust"], rows), figures


def measure_across(
    bench: Bench, sets: list[Corpus], config: AdaptationBenchmark
) -> tuple[str, Any]:
    """Label sets that lie across what the corpus groups by."""
    starter = [one for one in read_starter() if not one.unseen]
    texts = [text for one in starter for text, _ in one.examples]
    vectors_ND = bench.vectors("starter", texts)
    starts = np.cumsum([0, *(len(one.examples) for one in starter)])
    rows, figures = [], {}
    for one, start in zip(starter, starts[:-1]):
        if one.name not in ACROSS:
            continue
        mine_ND = vectors_ND[start : start + len(one.examples)]
        labels = only_names(one.labels)
        targets_N = np.array([labels.index(name) for _, name in one.examples])
        corpus = Corpus(one.name, vectors_ND, np.full(len(vectors_ND), -1), labels)
        fitted = bench.adapt(corpus)
        values = [
            bench.cosine(Corpus(one.name, mine_ND, targets_N, labels)),
            accuracy(fitted.scores(mine_ND), targets_N),
        ]
        rows.append([one.name, len(targets_N), *(f"{v:.1f}" for v in values)])
        rows[-1] += [_signed(values[1] - values[0]), fitted.report["trust"]]
        figures[one.name] = [*values, len(targets_N)]
    cosine, adapted = np.mean([values[:2] for values in figures.values()], axis=0)
    total = sum(values[2] for values in figures.values())
    gain = _signed(adapted - cosine)
    rows.append(["mean", total, f"{cosine:.1f}", f"{adapted:.1f}", gain, ""])
    return markdown_table(["set", "rows", "cosine", "adapted", "gain", "trust"], rows), figures


def measure_labelled(
    bench: Bench, sets: list[Corpus], config: AdaptationBenchmark
) -> tuple[str, Any]:
    """What some labelled rows choose, beside each trust with the same rows; the other rows are
    answered."""
    trusts = ("none", "careful", "default", "bold", "auto")
    found: dict[str, dict[str, float]] = {}
    for corpus in [*sets, *inbox(bench)]:
        cases = bent(corpus, 0) if corpus in sets else [("whole", corpus)]
        for case, one in cases:
            if case == "5 rows a label":
                continue
            random = np.random.default_rng(1)
            known = np.flatnonzero(one.targets_N >= 0)
            known = random.permutation(known)[: config.labelled_rows]
            rest = np.setdiff1d(np.arange(len(one.targets_N)), known)
            found[f"{corpus.name}/{case}"] = {
                trust: accuracy(
                    bench.adapt(one, trust, known).scores(one.vectors_ND[rest]),
                    one.targets_N[rest],
                )
                for trust in trusts
            }
    means = {t: float(np.mean([one[t] for one in found.values()])) for t in trusts}
    best = float(np.mean([max(one[t] for t in trusts[:-1]) for one in found.values()]))
    rows = [[trust, f"{mean:.1f}"] for trust, mean in means.items()]
    rows.append(["the best of each case", f"{best:.1f}"])
    headings = [f"{config.labelled_rows} labelled rows, {len(found)} cases", "accuracy"]
    return markdown_table(headings, rows), {"cases": found}


def measure_examples(
    bench: Bench, sets: list[Corpus], config: AdaptationBenchmark
) -> tuple[str, Any]:
    """Labelled examples pooled into the labels' vectors, logistic regression on them, and the
    mixture over corpus and examples; the other rows are answered."""
    topics = inbox(bench)[0]
    names = only_names(topics.labels)
    by_name = Corpus("inbox by name", topics.vectors_ND, topics.targets_N, names)
    groups = {"development sets": sets, "inbox, all": [topics], "inbox, names": [by_name]}
    rows, figures = [], {}
    for group, members in groups.items():
        sums: dict[str, list[list[float]]] = {}
        for corpus in members:
            for seed in range(config.seeds):
                for method, values in _with_examples(bench, corpus, seed).items():
                    sums.setdefault(method, []).append(values)
        for method, lists in sums.items():
            means = np.mean(lists, axis=0)
            rows.append([f"{group}: {method}", *(f"{v:.1f}" for v in means)])
            error = np.std(lists, axis=0, ddof=1) / len(lists) ** 0.5 if len(lists) > 1 else None
            figures[f"{group}: {method}"] = {
                "examples": [0, *EXAMPLES],
                "mean": means.tolist(),
                "standard_error": None if error is None else error.tolist(),
            }
    return markdown_table(["examples a label", "0", *map(str, EXAMPLES)], rows), figures


def _with_examples(bench: Bench, corpus: Corpus, seed: int) -> dict[str, list[float]]:
    count, found = len(corpus.labels), {"pooled": [], "logistic regression": [], "adapted": []}
    for examples in (0, *EXAMPLES):
        random = np.random.default_rng([7 + seed, examples])
        known = some_of_each(corpus.targets_N, np.full(count, examples), random)
        rest = np.setdiff1d(np.arange(len(corpus.targets_N)), known)
        x_ND, y_N = corpus.vectors_ND[rest], corpus.targets_N[rest]
        labelled = known if examples else None
        pooled = bench.adapt(corpus, "none", labelled)
        found["pooled"].append(accuracy(pooled.scores(x_ND), y_N))
        found["adapted"].append(accuracy(bench.adapt(corpus, "auto", labelled).scores(x_ND), y_N))
        regression = np.nan
        if examples:
            model = LogisticRegression(C=10, max_iter=500)
            model.fit(corpus.vectors_ND[known], corpus.targets_N[known])
            regression = 100 * float((model.predict(x_ND) == y_N)[y_N >= 0].mean())
        found["logistic regression"].append(regression)
    return found


def measure_halves(
    bench: Bench, sets: list[Corpus], config: AdaptationBenchmark
) -> tuple[str, Any]:
    """Fitted on one half and answered on the other, beside fitted on all."""
    figures = {}
    for corpus in sets:
        first_N = np.random.default_rng(3).random(len(corpus.targets_N)) < 0.5
        held = []
        for half_N in (first_N, ~first_N):
            fitted = bench.adapt(corpus.take(np.flatnonzero(half_N)))
            scores_NK = fitted.scores(corpus.vectors_ND[~half_N])
            held.append(accuracy(scores_NK, corpus.targets_N[~half_N]))
        whole = accuracy(bench.adapt(corpus).scores(corpus.vectors_ND), corpus.targets_N)
        figures[corpus.name] = [whole, float(np.mean(held))]
    rows = [[name, *(f"{v:.1f}" for v in values)] for name, values in figures.items()]
    mean = np.mean(list(figures.values()), axis=0)
    rows.append(["mean", *(f"{v:.1f}" for v in mean)])
    return markdown_table(["set", "fitted on all", "on the other half"], rows), figures


def measure_ece(bench: Bench, sets: list[Corpus], config: AdaptationBenchmark) -> tuple[str, Any]:
    """Calibration without labelled rows, and with some."""
    predictor = _predictor(bench, config)
    cosine_t = (
        Temperature()
        if predictor is None
        else Temperature(*predictor.model.config.cosine_calibration)
    )
    figures = {}
    for corpus in [*sets, *inbox(bench)]:
        known_N = corpus.targets_N >= 0
        x_ND, y_N = corpus.vectors_ND[known_N], corpus.targets_N[known_N]
        g_KD = label_vectors(corpus.labels, bench.text_vectors, 0)
        cosine_NK = cosine_t.scale(20.0 * (x_ND @ g_KD.T), len(corpus.labels))
        some = np.random.default_rng(1).permutation(np.flatnonzero(known_N))
        some = some[: config.labelled_rows]
        fits = bench.adapt(corpus), bench.adapt(corpus, "auto", some)
        values = [ece(softmax(cosine_NK, axis=1), y_N)]
        if predictor is not None:
            values.append(ece(predictor.probabilities(x_ND, corpus.labels), y_N))
        values += [ece(fit.probabilities(x_ND), y_N) for fit in fits]
        figures[corpus.name] = values
    names = ["cosine", *(["SCE"] if predictor else []), "adapted"]
    names.append(f"adapted + {config.labelled_rows}")
    rows = [[name, *(f"{v:.3f}" for v in values)] for name, values in figures.items()]
    mean = np.mean(list(figures.values()), axis=0)
    rows.append(["mean", *(f"{v:.3f}" for v in mean)])
    return markdown_table(["ECE", *names], rows), figures


def _predictor(bench: Bench, config: AdaptationBenchmark) -> Predictor | None:
    return Predictor.from_pretrained(config.model, bench.embedder) if config.model else None


def _signed(value: Any) -> str:
    return f"{float(value):+.1f}"
