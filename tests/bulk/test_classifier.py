"""Blocks of rows through `read_shard` and `BlockClassifier`, without Ray: the same answers as
`Predictor`, and an error in place of an answer for every bad row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sce.bulk.classifier import BlockClassifier
from sce.bulk.corpus import Columns, join_plans, open_corpus, plan_file
from sce.bulk.local import LocalPredictor
from sce.bulk.reading import read_shard
from sce.bulk.vectors import BlockEmbedder
from sce.model.label_tree import parse_set
from sce.model.options import AnswerOptions
from sce.predictor import Predictor
from tests.tiny_bulk import (
    LABELS,
    WORDS,
    build_models,
    embedder_of,
    load_predictor,
    text,
    write_jsonl,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build_models(tmp_path_factory.mktemp("model"), "sce")


@pytest.fixture(scope="module")
def predictor(folder) -> Predictor:
    return load_predictor(folder)


def classify(
    predictor: Predictor, path: str | Path, labels, columns: Columns, **answer
) -> list[dict]:
    corpus = open_corpus([str(path)])
    shards = join_plans([plan_file(corpus.files[0], 0, columns)])
    known = None if labels is None else parse_set(labels)
    classifier = BlockClassifier(LocalPredictor(predictor), known, columns, AnswerOptions(**answer))
    tables = [classifier(block) for shard in shards for block in read_shard(shard, columns)]
    return pa.concat_tables(tables).to_pylist()


@pytest.mark.parametrize("count", [1, 1000])
def test_label_sets_of_any_size(predictor, tmp_path, count):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text(i)} for i in range(20)])
    names = [f"{WORDS[i % len(WORDS)]} {i}" for i in range(count)]
    rows = classify(predictor, source, names, Columns(), return_scores=True)
    assert all([name for name, _ in row["scores"]] == names for row in rows)
    assert all(abs(sum(p for _, p in row["scores"]) - 1) < 1e-3 for row in rows)


def test_embeddings_of_ones_own_and_broken_ones(predictor, tmp_path):
    vectors = predictor.embedder.embed([text(i) for i in range(40)]).vectors
    lists: list = vectors.tolist()
    lists += [None, lists[0][:-1], [float("nan"), *lists[0][1:]], [2 * x for x in lists[0]]]
    table = pa.table({"key": range(44), "vector": pa.array(lists, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "in.parquet")
    sport = {"name": "sport", "description": "games", "synonyms": ["team"]}
    labels = [sport, "markets", "stars"]
    columns = Columns(text=None, embedding="vector", id="key")
    scores = np.sort([one.score for one in predictor.predict(vectors, labels)])
    below = 10 + int(np.argmax(np.diff(scores[9:30])))  # the widest gap, for rounding's sake
    threshold = float(scores[below - 1] + scores[below]) / 2
    rows = classify(predictor, tmp_path / "in.parquet", labels, columns, threshold=threshold)
    assert [row["id"] for row in rows] == [str(i) for i in range(44)]
    expected = predictor.predict(vectors, labels, threshold=threshold)
    for row, wanted in zip(rows, expected):
        assert (row["label"], row["error"]) == (wanted.label, "")
        assert row["score"] == pytest.approx(wanted.score, abs=1e-5)
    assert sum(row["label"] is None for row in rows[:40]) == below
    assert [row["error"] for row in rows[40:]] == [
        "embedding_missing",
        "embedding_wrong_size",
        "embedding_not_finite",
        "embedding_not_unit",
    ]
    assert all(row["label"] is row["score"] is None for row in rows[40:])


def test_a_block_of_bad_rows_alone_has_every_column(predictor, tmp_path):
    source = write_jsonl(
        tmp_path / "in.jsonl", [{"text": None, "x": 1, "label": "y"}, {"text": " "}]
    )
    columns = Columns(keep=("x", "label"))
    rows = classify(predictor, source, LABELS, columns, top_k=2, return_scores=True)
    assert [row["error"] for row in rows] == ["text_null", "text_empty"]
    assert all(row["label"] is row["score"] is row["top"] is row["scores"] is None for row in rows)
    assert [row["x"] for row in rows] == ["1", None]
    assert "input_label" in rows[0]


def test_sets_a_row_are_answered_in_the_words_of_the_row(predictor, tmp_path):
    known = [{"name": "sport", "description": "games and teams"}]
    sets = [[*LABELS, "sport "][i % 3 :: 2] for i in range(30)]
    source = write_jsonl(
        tmp_path / "in.jsonl", [{"text": text(i), "classes": s} for i, s in enumerate(sets)]
    )
    columns = Columns(labels="classes")
    rows = classify(predictor, source, known, columns, top_k=2, return_scores=True)
    told = [[known[0] | {"name": n} if n.strip() == "sport" else n for n in s] for s in sets]
    expected = predictor.predict([text(i) for i in range(30)], told, top_k=2, return_scores=True)
    for row, names, wanted in zip(rows, sets, expected, strict=True):
        assert [name for name, _ in row["scores"]] == names
        np.testing.assert_allclose(
            [p for _, p in row["scores"]], list(wanted.scores.values()), atol=1e-5
        )
        assert row["top"][0] == {"label": row["label"], "score": row["score"]}
        assert [pair["label"] for pair in row["top"]] == [name for name, _ in wanted.top]


def test_long_texts_in_chunks_are_answered_as_by_the_predictor(predictor, tmp_path):
    texts = [" ".join(f"{text(i)}." for i in range(first, 60)) for first in (0, 20, 50)]
    texts = [texts[0], "short", texts[1], " ", texts[2], texts[0]]
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": one, "where": "here"} for one in texts])
    for pooling in (None, "max"):
        asked = {"long_text": "chunk", "pooling": pooling, "return_scores": True}
        rows = classify(predictor, source, LABELS, Columns(keep=("where",)), **asked)
        expected = predictor.predict(texts, LABELS, **asked)
        for row, wanted in zip(rows, expected, strict=True):
            assert (row["label"], row["error"] or None) == (wanted.label, wanted.error)
            where = None if wanted.where is None else dict(zip(("start", "end"), wanted.where))
            assert row["where"] == where
            assert row["input_where"] == "here"
            assert not row["truncated"]
        assert rows[0]["where"]["end"] - rows[0]["where"]["start"] < len(texts[0]) / 2
    assert "where" not in classify(predictor, source, LABELS, Columns())[0]


def test_a_store_of_chunks_answers_as_the_texts_do(folder, predictor, tmp_path):
    texts = [" ".join(f"{text(i)}." for i in range(first, 40)) for first in (0, 30)]
    texts = [texts[0], " ", "short", texts[1]]
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": one} for one in texts])
    corpus, columns = open_corpus([source]), Columns()
    (shard,) = join_plans([plan_file(corpus.files[0], 0, columns)])
    embed = BlockEmbedder(embedder_of(folder), columns, chunks=True)
    rows = pa.concat_tables([embed(block) for block in read_shard(shard, columns)])
    assert [len(row) > 1 for row in rows["chunk_vectors"].to_pylist()] == [True, False, False, True]
    assert [one["end"] for one in rows["chunk_spans"][2].as_py()] == [len("short")]
    assert not any(rows["truncated"].to_pylist())
    pq.write_table(rows, tmp_path / "store.parquet")
    kept = Columns(text=None, embedding="embedding", id="row_id", chunks=True)
    for pooling in ("vector", "attention"):
        asked = {"long_text": "chunk", "pooling": pooling}
        found = classify(predictor, tmp_path / "store.parquet", LABELS, kept, **asked)
        expected = classify(predictor, source, LABELS, columns, **asked)
        for one, other in zip(found, expected, strict=True):
            assert one["label"] == other["label"]
            assert one["where"] == other["where"]
            assert one["error"] == other["error"]
    # Without chunks asked for, the answer is by `embedding`, their mean.
    plain = Columns(text=None, embedding="embedding", id="row_id")
    by_mean = classify(predictor, tmp_path / "store.parquet", LABELS, plain)
    by_vector = predictor.predict(texts, LABELS, long_text="chunk")
    assert [row["label"] for row in by_mean] == [one.label for one in by_vector]
    assert "where" not in by_mean[0]

    broken = rows["chunk_vectors"].to_pylist()
    broken[0][1] = [2 * x for x in broken[0][1]]
    place = rows.column_names.index("chunk_vectors")
    changed = pa.array(broken, rows["chunk_vectors"].type)
    pq.write_table(rows.set_column(place, "chunk_vectors", changed), tmp_path / "broken.parquet")
    found = classify(predictor, tmp_path / "broken.parquet", LABELS, kept, long_text="chunk")
    assert [row["error"] for row in found] == ["embedding_not_unit", "text_empty", "", ""]


def test_several_labels_a_row_are_those_of_the_predictor(predictor, tmp_path):
    records = [{"text": text(i), "labels": "kept"} for i in range(12)] + [{"text": " "}]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    asked = {"mode": "multi", "threshold": {LABELS[0]: 0.1}, "at_least": 1, "at_most": 2}
    rows = classify(predictor, source, LABELS, Columns(keep=("labels",)), top_k=1, **asked)
    texts = [record["text"] for record in records[:12]]
    expected = predictor.predict(texts, LABELS, top_k=1, **asked)
    for row, wanted in zip(rows, expected):
        found = [(one["label"], pytest.approx(one["score"], abs=1e-5)) for one in row["labels"]]
        assert wanted.labels == found
        assert 1 <= len(found) <= 2
        assert (row["label"], row["input_labels"]) == (wanted.label, "kept")
        assert row["top"][0]["label"] == wanted.top[0][0]
    assert (rows[12]["labels"], rows[12]["label"], rows[12]["error"]) == (None, None, "text_empty")


def test_several_labels_of_rows_with_sets_of_their_own(predictor, tmp_path):
    records = [{"text": text(i), "own": LABELS[: 1 + i % 3]} for i in range(9)]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    columns = Columns(labels="own")
    rows = classify(predictor, source, None, columns, mode="multi", at_least=2, return_scores=True)
    expected = predictor.predict(
        [record["text"] for record in records],
        [record["own"] for record in records],
        mode="multi",
        at_least=2,
    )
    for row, wanted in zip(rows, expected):
        assert [one["label"] for one in row["labels"]] == [name for name, _ in wanted.labels]


def test_a_tree_is_answered_as_by_the_predictor(predictor, tmp_path):
    lines = [{"text": text(i), "path": f"/{i}"} for i in range(20)]
    source = write_jsonl(tmp_path / "in.jsonl", [*lines, {}])
    tree = {"sport": ["team", "game"], "markets": ["shares", "oil"], "stars": None}
    asked = {"threshold": 0.4, "top_k": 2, "return_scores": True}
    *rows, bad = classify(predictor, source, tree, Columns(keep=("path",)), **asked)
    expected = predictor.predict([text(i) for i in range(20)], tree, **asked)
    for i, (row, one) in enumerate(zip(rows, expected, strict=True)):
        assert [(step["label"], step["score"]) for step in row["path"]] == one.path
        assert row["input_path"] == f"/{i}"
    assert bad["path"] is None
    assert [row["label"] for row in rows] == [one.label for one in expected]
    assert [row["score"] for row in rows] == pytest.approx([one.score for one in expected])
    assert [dict(row["scores"]) for row in rows] == [pytest.approx(one.scores) for one in expected]
    assert {"sport", "markets"} & {one.label for one in expected}, "some stop at an inner node"
    assert (bad["label"], bad["score"], bad["error"]) == (None, None, "text_null")
    (several, *_) = classify(predictor, source, tree, Columns(keep=("path",)), mode="multi")
    assert several["path"] == "/0", "of several labels there is no one way down"


def test_none_of_these_sets_and_reasons_are_those_of_the_predictor(predictor, tmp_path):
    texts = [text(i) for i in range(12)]
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": one} for one in [*texts, ""]])
    labels = [{"name": "sport", "examples": ["the team won", "a goal"]}, "markets", "stars"]
    asked = {"none_of_these": True, "coverage_cut": 0.3, "explain": True}
    rows = classify(predictor, source, labels, Columns(), **asked)
    for row, wanted in zip(rows, predictor.predict(texts, labels, **asked)):
        assert (row["label"], row["none_score"]) == (wanted.label, wanted.none_score)
        assert [(one["label"], one["score"]) for one in row["labels"]] == wanted.labels
        assert [vars(one) for one in wanted.why.nearest] == [
            {**one, "row": None} for one in row["why"]["nearest"]
        ]
        assert tuple(row["why"]["competitor"].values()) == wanted.why.competitor
    bad = rows[-1]
    assert bad["error"] == "text_empty"
    assert bad["labels"] is bad["none_score"] is bad["why"] is None
