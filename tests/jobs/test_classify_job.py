"""`jobs/classify.py` in process: text and store, bad rows, refusals, the weekly loop.

Kills are in `test_classify_system.py`, kinds of rows without Ray in `tests/bulk`.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from sce.embedding.store import EmbeddingStore
from sce.errors import MAX_NAME_CHARS
from tests.tiny_bulk import (
    LABELS,
    build_models,
    embedder_of,
    load_predictor,
    read_output,
    run_classify,
    text,
    write_jsonl,
    write_store,
)
from tests.tiny_models import build_sentence_transformer

ROWS = 60
ASKED = ["--labels", json.dumps(LABELS), "--id-column", "id"]

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`sce`, a model with random weights, and `embedder`, the text embedder that it reads."""
    return build_models(tmp_path_factory.mktemp("model"), "sce")


@pytest.fixture
def classify(ray_session, folder, capsys):
    return partial(run_classify, folder, capsys)


@pytest.fixture
def run_well(classify):
    def run(*argv: str) -> dict:
        code, summary, said = classify(*argv)
        assert code == 0, said
        return summary

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """`in.jsonl`, and what the tests of the weekly loop make of it one after another."""
    home = tmp_path_factory.mktemp("home")
    rows = [{"id": f"t{i}", "text": text(i), "team": {"a": i}} for i in range(ROWS)]
    write_jsonl(home / "in.jsonl", rows)
    return home


def test_text_store_and_python_give_the_same_answers(run_well, classify, folder, home):
    source = ["--input", str(home / "in.jsonl"), *ASKED, "--save-embeddings", str(home / "store")]
    told = ["--return-scores", "--top-k", "2", "--keep-columns", "team"]
    saved = run_well(*source, *told, "--output", str(home / "saved"))
    assert (saved["rows_in"], saved["rows_out"], saved["errors"]) == (ROWS, ROWS, {})
    assert saved["scoring"] == "exact"
    assert EmbeddingStore.open(home / "store").manifest.rows == ROWS
    stored = ["--output-format", "jsonl", "--output", str(home / "stored")]
    again = run_well("--input", str(home / "store"), *ASKED, *told, *stored)
    assert again["rows_out"] == ROWS
    ways = [read_output(home / name) for name in ("saved", "stored")]
    assert json.loads(ways[0][7]["team"]) == {"a": 7}
    texts = [text(i) for i in range(ROWS)]
    expected = load_predictor(folder).predict(texts, LABELS, return_scores=True, top_k=2)
    for i, wanted in enumerate(expected):
        for found in (way[i] for way in ways):
            assert found["id"] == f"t{i}"
            assert found["label"] == wanted.label
            assert found["score"] == pytest.approx(wanted.score, abs=1e-5)
            assert [pair["label"] for pair in found["top"]] == [name for name, _ in wanted.top]
            assert dict(found["scores"]) == pytest.approx(wanted.scores, abs=1e-5)
            assert not found["truncated"]

    # done: said so, nothing written; another request: refused
    before = sorted(path.stat().st_mtime_ns for path in (home / "saved").rglob("*"))
    unchanged = run_well(*source, *told, "--output", str(home / "saved"))
    assert unchanged["unchanged"] is True
    assert before == sorted(path.stat().st_mtime_ns for path in (home / "saved").rglob("*"))
    other = ["--labels", json.dumps([*LABELS[:3], "galaxies"]), "--id-column", "id", *told]
    code, _, said = classify(*source[:2], *other, "--output", str(home / "saved"))
    assert code == 2
    assert "labels gone: 'stars'" in said
    assert "labels new: 'galaxies'" in said


def test_the_weekly_loop(run_well, home):
    new = ["--labels", json.dumps([*LABELS[:3], "galaxies"]), "--output", str(home / "week2")]
    compared = ["--compare-to", str(home / "stored"), "--tracking.uri", f"sqlite:///{home}/m.db"]
    second = run_well("--input", str(home / "store"), *new, *compared, "--id-column", "id")
    assert second["rows_out"] == ROWS
    before, after = read_output(home / "stored"), read_output(home / "week2")
    moved = second["comparison"]["compare/rows_moved"]
    assert moved == sum(old["label"] != row["label"] for old, row in zip(before, after))
    assert second["comparison"]["compare/labels_new"] == 1
    logged = MlflowClient(f"sqlite:///{home}/m.db").get_run(second["mlflow_run_id"])
    assert logged.data.metrics["rows_out"] == ROWS
    assert logged.data.metrics["compare/rows_moved"] == moved
    assert logged.info.status == "FINISHED"
    report = (home / "week2" / "_comparison" / "report.md").read_text()
    assert 'Gone (1): "stars"' in report
    moved_ids = [row["id"] for old, row in zip(before, after) if old["label"] != row["label"]]
    assert any(f"| {text(int(id_[1:]))} |" in report for id_ in moved_ids)


@pytest.mark.system
def test_a_threshold_and_a_cut_from_labelled_rows(run_well, folder, tmp_path):
    """They are right where the model is surer, so half of them can be answered."""
    texts = [text(i) for i in range(ROWS)]
    store = write_store(tmp_path / "store", embedder_of(folder), texts)
    found = load_predictor(folder).predict(texts, LABELS)
    by_score = sorted(zip(texts, found), key=lambda row: -row[1].score)
    gaps = -np.diff([one.score for _, one in by_score])
    cut = 20 + int(np.argmax(gaps[19:40]))  # rows of nearly the same score go together
    assert gaps[cut - 1] > 1e-3
    labelled = write_jsonl(
        tmp_path / "labelled.jsonl",
        [
            {"text": one, "label": answer.label if rank < cut else _another(answer.label)}
            for rank, (one, answer) in enumerate(by_score)
        ],
    )
    target = ["--target-precision", "1", "--labelled", labelled, "--coverage", "0.8"]
    chosen = run_well("--input", store, *ASKED[:2], *target, "--output", str(tmp_path / "out"))
    assert by_score[cut][1].score < chosen["threshold"] <= by_score[cut - 1][1].score
    assert chosen["threshold_choice"].startswith("Threshold")
    assert chosen["null_labels"] == ROWS - cut
    rows = sorted(read_output(tmp_path / "out"), key=lambda row: row["place"])
    right = dict(json.loads(line).values() for line in Path(labelled).read_text().splitlines())
    held = [right[t] in {one["label"] for one in row["labels"]} for t, row in zip(texts, rows)]
    assert all(one["score"] >= chosen["coverage_cut"] for row in rows for one in row["labels"][1:])
    assert 0.8 <= np.mean(held) < 1  # the best one is always among them
    asked = ["--none-of-these", "--none-recall", "0.9", "--labelled", labelled]
    asked += ["--none-share", "0.3"]
    found = run_well("--input", store, *ASKED[:2], *asked, "--output", str(tmp_path / "none"))
    rows = read_output(tmp_path / "none")
    most = np.float32(found["none_threshold"])
    assert [row["label"] is None for row in rows] == [row["none_score"] > most for row in rows]
    assert np.mean([row["label"] is not None for row in rows]) == pytest.approx(0.9, abs=0.02)
    assert np.mean([row["none_score"] for row in rows]) == pytest.approx(0.3, abs=1e-4)
    again = {"none_of_these": True, "none_share": found["none_share"]}  # of one text alone
    (alone,) = load_predictor(folder).predict(texts[:1], LABELS, **again)
    scored = sorted(rows, key=lambda row: row["place"])[0]["none_score"]
    assert alone.none_score == pytest.approx(scored, abs=1e-3)


@pytest.mark.system
def test_rows_of_the_corpus_are_among_the_reasons(run_well, tmp_path):
    texts = {f"n{i}": text(i) for i in range(60)}
    source = write_jsonl(
        tmp_path / "in.jsonl", [{"id": name, "text": one} for name, one in texts.items()]
    )
    labels = json.dumps([{"name": "sport", "examples": ["the team won"]}, "markets"])
    (tmp_path / "labels.json").write_text(labels)
    flags = ["--labels-file", str(tmp_path / "labels.json"), "--explain", "--id-column", "id"]
    kept = ["--save-embeddings", str(tmp_path / "store")]
    run_well("--input", source, *flags, *kept, "--output", str(tmp_path / "out"))
    rows = read_output(tmp_path / "out")
    label_of = {row["id"]: row["label"] for row in rows}
    for row in rows:
        nearest = row["why"]["nearest"]
        assert len(nearest) == 3
        similar = [one["similarity"] for one in nearest]
        assert similar == sorted(similar, reverse=True)
        for one in nearest:
            assert one["label"] == row["label"]
            assert one["row"] != row["id"]
            if one["row"] is None:
                assert one["text"] == "the team won"
            else:
                assert (one["text"], label_of[one["row"]]) == (texts[one["row"]], row["label"])


def _another(label: str) -> str:
    return next(name for name in LABELS if name != label)


BROKEN = {
    "line_unreadable": b'{"id": "x", "text": ',
    "line_not_utf8": b'{"id": "x", "text": "\xff\xfe"}',
    "id_missing": {"text": "no id"},
    "id_too_long": {"id": "x" * 513, "text": "a long id"},
    "text_null": {"id": "null", "text": None},
    "text_empty": {"id": "empty", "text": " \t\u00a0"},
    "text_not_string": {"id": "number", "text": 7},
    "text_not_unicode": b'{"id": "surrogate", "text": "\\ud800"}',
    "labels_missing": {"id": "none", "text": "a text", "classes": []},
    "labels_not_a_list": {"id": "word", "text": "a text", "classes": {"a": 1}},
    "label_empty": {"id": "blank", "text": "a text", "classes": ["a", " "]},
    "label_too_long": {"id": "long", "text": "a text", "classes": ["y" * (MAX_NAME_CHARS + 1)]},
    "label_duplicate": {"id": "twice", "text": "a text", "classes": ["a", "b", "a"]},
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> tuple[list, list[str]]:
    """Rows of which one in a hundred is broken, each kind once, and the flags that read them."""
    good = [
        {"id": f"t{i}", "text": text(i % 40), "classes": LABELS[: 1 + i % 4]}
        for i in range(99 * len(BROKEN))
    ]
    rows: list = []
    for i, broken in enumerate(BROKEN.values()):
        if isinstance(broken, dict):
            broken = {"classes": LABELS} | broken
        rows += [*good[99 * i : 99 * (i + 1)], broken]
    source = write_jsonl(tmp_path_factory.mktemp("broken") / "in.jsonl", rows)
    return rows, ["--input", source, "--id-column", "id", "--labels-column", "classes"]


def test_one_per_cent_of_broken_rows_of_every_kind(run_well, broken, tmp_path):
    rows, flags = broken
    summary = run_well(*flags, "--output", str(tmp_path / "out"), "--max-errors", "1%")
    assert summary["rows_in"] == summary["rows_out"] == len(rows)
    assert summary["errors"] == dict.fromkeys(BROKEN, 1)
    found = read_output(tmp_path / "out")
    for i, (row, answer) in enumerate(zip(rows, found, strict=True)):
        if i % 100 < 99:
            assert (answer["id"], answer["error"]) == (row["id"], None)
            assert answer["label"] in row["classes"]
            assert answer["score"] >= 1 / len(row["classes"])
        else:
            assert (answer["label"], answer["score"]) == (None, None)
    assert [row["error"] for row in found if row["error"]] == list(BROKEN)


@pytest.mark.system
def test_more_broken_rows_than_allowed_stop_the_job(classify, broken, tmp_path):
    code, _, said = classify(*broken[1], "--output", str(tmp_path / "out"), "--max-errors", "3")
    assert code == 1
    assert "max_errors" in said
    assert "text_null 1" in said


BAD_FILES = {
    "array.json": ('[\n {\n  "text": "a"\n }\n]\n', "one JSON array"),
    "wide.csv": ('id,text\n0,"a",\n1,"b",\n', "3 fields, but the columns are 2"),
}


@pytest.mark.system
@pytest.mark.parametrize("name", list(BAD_FILES))
def test_a_job_that_answered_nothing_did_not_succeed(classify, tmp_path, name):
    content, cause = BAD_FILES[name]
    (tmp_path / name).write_text(content)
    flags = ["--input", str(tmp_path / name), "--labels", "a", "--labels", "b"]
    code, _, said = classify(*flags, "--output", str(tmp_path / "out"), "--max-errors", "99")
    assert code == 1
    assert "rows have errors (line_unreadable" in said
    assert cause in said
    assert f"{name}:1:" in said or f"{name}:2:" in said


def test_a_missing_column_comes_with_its_likely_cause(classify, tmp_path):
    (tmp_path / "in.csv").write_text("id;body\n0;a\n")
    flags = ["--input", str(tmp_path / "in.csv"), "--labels", "a", "--labels", "b"]
    code, _, said = classify(*flags, "--delimiter", ",", "--output", str(tmp_path / "out"))
    assert code == 2
    assert "has no column 'text'. It has: id;body" in said
    assert "most likely set apart by semicolons: leave out --delimiter" in said


@pytest.mark.system
def test_a_dry_run_writes_nothing(run_well, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text(i)} for i in range(30)])
    summary = run_well("--input", source, "--labels", json.dumps(LABELS), "--dry-run")
    assert (summary["rows_in"], summary["sample_rows"]) == (30, 30)
    assert summary["expected_seconds"] >= 0
    assert summary["expected_output_bytes"] > 0
    assert sum(rows for _, _, rows in summary["confused"]) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", '["a", "b"]'], "output: give a folder"),
        (["--output", "x"], "give labels"),
        (["--labels", '["a", "a "]', "--output", "x"], "stands twice"),
        (["--labels", '["a"]', "--output", "x", "--text-column", "body"], "no column 'body'"),
        (["--labels", '["a"]', "--output", "x", "--target-precision", "0.9"], "go together"),
        (["--labels", '["a"]', "--output", "x", "--coverage", "0.9"], "coverage and labelled go"),
        (["--labels", '["a"]', "--output", "x", "--max-errors", "many"], "neither a count"),
        (
            ["--labels", '["a"]', "--output", "x", "--none-recall", "0.9"],
            "none_recall and labelled",
        ),
        (
            ["--labels", '["a; b"]', "--output", "x", "--mode", "multi", "--output-format=csv"],
            "stands between a row's labels in a CSV",
        ),
        (["--labels", '["a"]', "--output", "x", "--threshold", '{"b": 0.5}'], "'b' is not one of"),
        (["--labels", '["a"]', "--output", "x", "--top-k", "0"], "top_k"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(classify, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a text"}])
    code, _, said = classify("--input", source, *flags)
    assert code == 2
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("loop.json", '[{"name": "a", "parent": "b"}, {"name": "b", "parent": "a"}]',
         "a cycle of parents, 'a' < 'b' < 'a'"),
        ("loop.yaml", "a: &a\n  b: *a\n", "line 2: 'a' contains itself"),
        ("twice.yaml", "a: [b, c]\nd: [b, b]\n", "the path 'd/b' stands twice"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_tree_is_refused(classify, tmp_path, name, content, message):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a text"}])
    (tmp_path / name).write_text(content)
    flags = ["--labels-file", str(tmp_path / name), "--output", str(tmp_path / "out")]
    code, _, said = classify("--input", source, *flags)
    assert code == 2
    assert message in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_a_store_of_another_embedder_is_refused(classify, tmp_path):
    build_sentence_transformer(tmp_path / "other", pooling="cls")
    store = write_store(tmp_path / "store", embedder_of(tmp_path, "other"), ["a text"])
    code, _, said = classify("--input", store, "--labels", '["a"]', "--output", str(tmp_path / "o"))
    assert code == 2
    assert "mean" in said
    assert "cls" in said
