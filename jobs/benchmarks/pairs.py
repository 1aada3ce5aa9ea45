"""How right mode multi is on texts with several right labels, beside cosine similarity.

Rows are those of sets with one right label, joined in pairs: of the starter corpus's unseen sets,
of labelled files in a folder. Or they have several labels by themselves: the messages of the inbox,
and Debian's packages with the tags that people gave them, from an index such as apt keeps. A model
that was trained on several labels is measured on the same rows, and `write` makes what such a
training reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field

from jobs.benchmarks.corpora import NO_LABEL, labelled_file
from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import Figure, Figures
from sce.datasets.inbox import inbox_label_sets, inbox_topics
from sce.datasets.labelled import read_labelled
from sce.datasets.starter import choose_validation_sets, read_starter, starter_rows
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError, DataError
from sce.evaluation.evaluate import EvaluationSet
from sce.evaluation.settings import EvaluateConfig
from sce.labels import LabelSet
from sce.model.options import DEFAULT_THRESHOLD
from sce.predictor import Predictor
from sce.workflows.evaluate_several import (
    MIN_ROWS,
    SeveralSet,
    joined_in_pairs,
    measure_several,
)

PUBLIC = ("clinc150", "ag_news", "banking77", "hwu64", "snips")
"""Files `NAME.jsonl(.gz)` with `text` and `label`."""
FACETS = ("use", "works-with", "field", "admin", "hardware")
"""Kinds of tags in which packages of Debian often have several."""
MIN_TAGGED = 20
"""Packages that a tag needs to be a label."""
UNDONE = "TODO"
"""A tag that says that somebody should look for one."""
FIGURES = {
    "micro-F1, %": "micro_f1",
    "macro-F1, %": "macro_f1",
    "exact, %": "exact_match",
    "LRAP, %": "lrap",
}


class PairsBenchmark(Benchmark):
    """Settings of `benchmark.py pairs`."""

    model: str | None = None
    """Folder, URI or hub id of a trained model."""
    trained: str | None = None
    """A model that was trained on rows with several right labels, measured beside it."""
    rows: int = Field(default=1000, ge=MIN_ROWS)
    """Of a set at most."""
    starter: bool = True
    """Measure the starter corpus's unseen sets, and the inbox."""
    data: Path | None = None
    """A folder with labelled files: `clinc150.jsonl(.gz)` and other names of this module."""
    sets: list[str] = list(PUBLIC)
    """Which of them; those that are not there are left out."""
    packages: Path | None = None
    """An index of Debian packages with tags: a file `Packages`, unpacked
    (`/usr/lib/apt/apt-helper cat-file /var/lib/apt/lists/..._Packages.lz4`)."""
    facets: list[str] = list(FACETS)
    """Of the tags, each a label set."""
    write: Path | None = None
    """Only write to this folder what a training on several labels reads: the starter corpus's
    train sets joined in pairs, their labels, and `pairs.yaml` for jobs/train_sce.py."""
    embedder: EmbedderConfig | None = None


def benchmark_pairs(config: PairsBenchmark) -> Measured:
    """Figures with thresholds a label from the other half of the rows, and micro-F1 with the
    default threshold; means of the starter corpus's sets, and each other set.

    Raises:
        ConfigError: there is neither a model nor a folder to write to.
        DataError: a file cannot be read, or there is nothing to measure.
    """
    if config.write is not None:
        rows = write_training(config.write)
        return Measured({}, notes=(f"{rows:,} rows to train on are in {config.write}.",))
    if config.model is None:
        raise ConfigError("model: a trained model is needed, or write.")
    sets = [("starter, unseen sets", list(_starter_sets()))] if config.starter else []
    sets += [("inbox, topics", [_inbox()])] if config.starter else []
    sets += [(one.name, [one]) for one in _public_sets(config)]
    if config.packages is not None:
        sets += [(one.name, [one]) for one in tagged_sets(config.packages, config.facets)]
    sets = [(name, [_some(one, config.rows) for one in some]) for name, some in sets]
    if not sets:
        raise DataError("there is nothing to measure: see starter, data and packages.")
    predictor = Predictor.from_pretrained(config.model, config.embedder)
    sides = {"mode multi": predictor}
    if config.trained is not None:
        sides["trained on several labels"] = Predictor.from_pretrained(
            config.trained, predictor.embedder
        )
    figures: Figures = {}
    for name, without in sets:
        some = [replace(x, vectors_ND=predictor.embedder.embed(x.texts).vectors) for x in without]
        rows_of: dict[str, dict[str, Any]] = {}
        for side, one in sides.items():
            results = measure_several(some, one, predictor.embedder, EvaluateConfig())
            rows_of[side] = _figures(results, "sce")
            cosine = _figures(results, "cosine")
        figures[_headline(name, some)] = rows_of | {"cosine similarity": cosine}
    arithmetic = arithmetic_of(embedder=predictor.embedder, encoder=predictor.model)
    notes = (
        "Thresholds, one a label, are found on the other half of the rows by F1, for cosine "
        "similarity too, whose probabilities are fitted there. Default: " + DEFAULT_THRESHOLD + ".",
    )
    return Measured(figures, arithmetic, notes=notes, details={"sets": len(sets)})


def write_training(folder: Path) -> int:
    """Write rows with several labels for a training, beside the corpus itself; how many.

    Of a train set each row is joined with another of its set, and in one of eight rows two of
    another set stand, so that none of its labels fits. Sets by which a training is judged are
    joined among themselves.
    """
    every = [one for one in read_starter() if not one.unseen]
    judging = choose_validation_sets(every, 12)
    split_of: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in starter_rows("starter", every, judging, 0):
        key = row.label_set.removeprefix("starter/"), row.split
        split_of.setdefault(key, []).append((row.text, row.label))
    rng, found = np.random.default_rng(0), []
    labels = {one.name: [label.to_dict() for label in one.labels.labels] for one in every}
    for split in ("train", "validation"):
        names = [name for name, of in split_of if of == split]
        for place, name in enumerate(names):
            mine, other = split_of[name, split], split_of[names[place - 1], split]
            for i, j in enumerate(rng.permutation(len(mine))):
                one, two, right = mine[i], mine[j], {mine[i][1], mine[j][1]}
                if i % 8 == 7:
                    one, two, right = other[i % len(other)], other[j % len(other)], set()
                text = one[0] if one == two else f"{one[0]} {two[0]}"
                row = {"text": text, "labels": sorted(right), "label_set": name, "split": split}
                found.append(row)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    (folder / "pairs.jsonl").write_text(lines, encoding="utf-8")
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
    source = {"dataset": "custom", "name": "pairs", "path": str(folder.resolve() / "pairs.jsonl")}
    source |= {"several_labels": True, "labels": str(folder.resolve() / "labels.json")}
    settings = {"name": "pairs", "run_dir": str(folder.resolve() / "run")}
    settings["data"] = {"sources": [{"dataset": "starter"}, source]}
    (folder / "pairs.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return len(found)


def tagged_sets(packages: Path, facets: Sequence[str]) -> list[SeveralSet]:
    """Descriptions of Debian's packages, one a source, with their tags of each facet; a label set
    a facet, of packages that have one of its tags.

    Raises:
        DataError: the file cannot be read, or is no index with tags.
    """
    texts, tags = [], []
    seen = set()
    for package in _paragraphs(packages):
        source = package.get("Source", package["Package"]).split()[0]
        if "Tag" not in package or "Description" not in package or source in seen:
            continue
        seen.add(source)
        texts.append(package["Description"])
        tags.append([tag.strip() for tag in package["Tag"].split(",")])
    if not texts:
        raise DataError(f"packages: no package in {packages} has a field `Tag`.")
    found = []
    for facet in facets:
        mine = [[t.partition("::")[2] for t in one if t.startswith(f"{facet}::")] for one in tags]
        names, counts = np.unique([t for one in mine for t in one] or [""], return_counts=True)
        kept = {str(t) for t, n in zip(names, counts) if n >= MIN_TAGGED and t != UNDONE}
        if len(kept) < 2:
            raise DataError(f"facets: {facet!r} has no two tags on {MIN_TAGGED} packages each.")
        rows = [(text, sorted(kept & set(one))) for text, one in zip(texts, mine)]
        rows = [(text, [_readable(t) for t in one]) for text, one in rows if one]
        labels = LabelSet.parse(sorted(_readable(t) for t in kept))
        name = f"Debian, {facet}"
        found.append(SeveralSet(name, labels, [text for text, _ in rows], [r for _, r in rows]))
    return found


def _paragraphs(packages: Path) -> Iterator[dict[str, str]]:
    """The fields of each package of an index (deb822), folded lines joined."""
    fields: dict[str, str] = {}
    name = ""
    try:
        with packages.open(encoding="utf-8") as lines:
            for line in lines:
                if not line.strip():
                    if "Package" in fields:
                        yield fields
                    fields = {}
                elif line[0].isspace():
                    fields[name] = fields.get(name, "") + " " + line.strip()
                else:
                    name, _, value = line.partition(":")
                    fields[name] = value.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"packages: {packages} is no index of packages: {error}.") from None
    if "Package" in fields:
        yield fields


def _readable(tag: str) -> str:
    """`software:running` as "software, running"."""
    return tag.replace(":", ", ").replace("-", " ")


def _starter_sets() -> Iterator[SeveralSet]:
    for one in read_starter():
        if one.unseen:
            texts, labels = (list(part) for part in zip(*one.examples))
            yield _joined(one.name, one.labels, texts, labels)


def _inbox() -> SeveralSet:
    texts, topics = zip(*inbox_topics(), strict=True)
    return SeveralSet("inbox", inbox_label_sets()["inbox/topics"], texts, topics)


def _public_sets(config: PairsBenchmark) -> Iterator[SeveralSet]:
    if config.data is None:
        return
    found = False
    for name in config.sets:
        file = labelled_file(config.data, name)
        if file is None:
            continue
        found = True
        texts, names, _ = read_labelled(file)
        kept = [i for i, label in enumerate(names) if label not in NO_LABEL]
        rows = np.random.default_rng(0).permutation(kept)[: config.rows].tolist()
        readable = [names[i].replace("_", " ") for i in rows]
        labels = LabelSet.parse(sorted({names[i].replace("_", " ") for i in kept}))
        yield _joined(name, labels, [texts[i] for i in rows], readable)
    if not found:
        raise DataError(f"data: {config.data} has none of {', '.join(config.sets)} as .jsonl(.gz).")


def _joined(name: str, labels: LabelSet, texts: Sequence[str], right: Sequence[str]) -> SeveralSet:
    return joined_in_pairs(EvaluationSet(name, name, "unseen", labels, list(right), texts, right))


def _some(one: SeveralSet, rows: int) -> SeveralSet:
    chosen = np.random.default_rng(0).permutation(len(one.texts))[:rows].tolist()
    texts, labels = [one.texts[i] for i in chosen], [one.labels[i] for i in chosen]
    return SeveralSet(one.name, one.label_set, texts, labels)


def _headline(name: str, some: Sequence[SeveralSet]) -> str:
    rows = sum(len(one.texts) for one in some)
    counts = [len(labels) for one in some for labels in one.labels]
    what = f"{len(some[0].label_set)} labels" if len(some) == 1 else f"{len(some)} sets"
    return f"{name}: {what}, {rows:,} rows, {np.mean(counts):.2f} right labels a row"


def _figures(results: Sequence[dict[str, Any]], method: str) -> dict[str, Figure]:
    def mean(values: Sequence[float]) -> Figure:
        return Figure.of(round(100 * float(np.mean(values)), 1), "%")

    found = {
        column: mean([one[method][name] for one in results]) for column, name in FIGURES.items()
    }
    by_default = mean([one[f"{method}_default"]["micro_f1"] for one in results])
    return found | {"micro-F1 by default, %": by_default}
