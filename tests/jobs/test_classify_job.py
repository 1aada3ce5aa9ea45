"""`jobs/classify.py` in process: every kind of input, bad rows, refusals, the weekly loop.

Kills are in `test_classify_system.py`.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from sce.embedding.embedder import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import EmbeddingStore
from sce.errors import MAX_NAME_CHARS
from sce.predictor import Predictor
from sce.training.fresh_model import ModelConfig, build_model
from tests.tiny_models import build_roberta, build_sentence_transformer

ROOT = Path(__file__).parents[2]
LABELS = ["markets", "sport", "late parcel", "stars"]
WORDS = ("markets", "rose", "the", "team", "won", "my parcel", "never came", "a galaxy", "light")
NO_TRACKING = "--no-tracking.enabled"

pytestmark = pytest.mark.timeout(280)


def text(i: int) -> str:
    return " ".join(WORDS[(i * step) % len(WORDS)] for step in range(1, 6)) + f" {i}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`sce`, a model with random weights, and `embedder`, the text embedder that it reads."""
    folder = tmp_path_factory.mktemp("model")
    build_sentence_transformer(folder / "embedder")
    build_roberta(folder / "roberta")
    config = ModelConfig(encoder=str(folder / "roberta"), adaptor_init="normal")
    fingerprint = embedder_fingerprint(embedder_config(folder)).to_dict()
    build_model(config, fingerprint, 0.0, seed=0).model.save_pretrained(folder / "sce")
    return folder


def embedder_config(folder: Path) -> EmbedderConfig:
    return EmbedderConfig(kind="sentence_transformers", model=str(folder / "embedder"))


def embedder_flags(embedder: Path) -> list[str]:
    return ["--embedder.kind", "sentence_transformers", "--embedder.model", str(embedder)]


@pytest.fixture(scope="module")
def predictor(folder) -> Predictor:
    return Predictor.from_pretrained(folder / "sce", embedder_config(folder))


@pytest.fixture
def classify(ray_session, folder, capsys):
    """Runs the job; the exit code, its summary, and what it said on standard error."""

    def run(*argv: str):
        # As `Predictor` computes; by itself the job takes bfloat16 where the processor has it.
        known = ["--model", str(folder / "sce"), "--dtype", "float32"]
        known += embedder_flags(folder / "embedder")
        tracking = () if any(flag.startswith("--tracking") for flag in argv) else (NO_TRACKING,)
        code = job("classify").main([*known, *tracking, *argv])
        captured = capsys.readouterr()
        lines = captured.out.strip().splitlines()
        return code, json.loads(lines[-1]) if code == 0 else {}, captured.err

    return run


@pytest.fixture
def run_well(classify):
    def run(*argv: str) -> dict:
        code, summary, said = classify(*argv)
        assert code == 0, said
        return summary

    return run


def job(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_job", ROOT / "jobs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_jsonl(path: Path, rows: list) -> str:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def read(output: Path) -> dict[str, dict]:
    """The rows of an output by id."""
    paths = sorted(output.glob("part-*/*"))
    if paths[0].suffix == ".parquet":
        rows = pa.concat_tables([pq.read_table(path) for path in paths]).to_pylist()
    else:
        rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_text_store_and_python_give_the_same_answers(run_well, classify, predictor, tmp_path):
    rows = [{"id": f"t{i}", "text": text(i), "team": {"a": i}} for i in range(300)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    labels = ["--labels", json.dumps(LABELS)]
    common = [*labels, "--id-column", "id", "--return-scores", "--top-k", "2"]
    plain = run_well("--input", source, *common, "--output", str(tmp_path / "plain"))
    assert (plain["rows_in"], plain["rows_out"], plain["errors"]) == (300, 300, {})
    assert plain["scoring"] == "exact"
    direct = read(tmp_path / "plain")

    store = str(tmp_path / "store")
    saved = ["--save-embeddings", store, "--output", str(tmp_path / "saved")]
    run_well("--input", source, *common, *saved, "--keep-columns", "team")
    again = run_well(
        "--input", store, *common, "--output", str(tmp_path / "stored"),
        "--output-format", "jsonl", "--keep-columns", "team",
    )  # fmt: skip
    assert again["rows_out"] == 300
    saved_rows, stored = read(tmp_path / "saved"), read(tmp_path / "stored")
    assert json.loads(saved_rows["t7"]["team"]) == {"a": 7}
    expected = predictor.predict([row["text"] for row in rows], LABELS, return_scores=True, top_k=2)
    for row, wanted in zip(rows, expected, strict=True):
        for found in (direct[row["id"]], saved_rows[row["id"]], stored[row["id"]]):
            assert found["label"] == wanted.label
            assert found["score"] == pytest.approx(wanted.score, abs=1e-5)
            assert [pair["label"] for pair in found["top"]] == [name for name, _ in wanted.top]
            assert dict(found["scores"]) == pytest.approx(wanted.scores, abs=1e-5)
            assert not found["truncated"]

    # done: said so, nothing written; another request: refused
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "plain").rglob("*"))
    unchanged = run_well("--input", source, *common, "--output", str(tmp_path / "plain"))
    assert unchanged["unchanged"] is True
    assert before == sorted(path.stat().st_mtime_ns for path in (tmp_path / "plain").rglob("*"))
    other = ["--labels", '["markets", "sport", "late parcel", "galaxies"]']
    code, _, said = classify("--input", source, *other, "--output", str(tmp_path / "plain"))
    assert code == 2
    assert "labels gone: 'stars'" in said
    assert "labels new: 'galaxies'" in said


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


def test_one_per_cent_of_broken_rows_of_every_kind(run_well, classify, tmp_path):
    good = [
        {"id": f"t{i}", "text": text(i), "classes": LABELS[: 1 + i % 4]}
        for i in range(99 * len(BROKEN))
    ]
    rows: list = []
    for i, broken in enumerate(BROKEN.values()):
        if isinstance(broken, dict):
            broken = {"classes": LABELS} | broken
        rows += [*good[99 * i : 99 * (i + 1)], broken]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    columns = ["--id-column", "id", "--labels-column", "classes"]
    settings = ["--input", source, *columns, "--output", str(tmp_path / "out")]
    summary = run_well(*settings, "--max-errors", "1%")
    assert summary["rows_in"] == summary["rows_out"] == len(rows)
    assert summary["errors"] == dict.fromkeys(BROKEN, 1)
    table = pa.concat_tables(
        [pq.read_table(path) for path in (tmp_path / "out").glob("part-*/*.parquet")]
    ).sort_by("place")
    found = table.to_pylist()
    for row, answer in zip(rows, found, strict=True):
        if isinstance(row, dict) and row.get("id", "").startswith("t") and row in good:
            assert (answer["id"], answer["error"]) == (row["id"], "")
            assert answer["label"] in row["classes"]
            assert answer["score"] >= 1 / len(row["classes"])
        else:
            assert (answer["label"], answer["score"]) == (None, None)
    assert [row["error"] for row in found if row["error"]] == list(BROKEN)

    settings[-1] = str(tmp_path / "strict")
    code, _, said = classify(*settings, "--max-errors", "3")
    assert code == 2
    assert "max_errors" in said
    assert "text_null 1" in said


def test_embeddings_of_ones_own_and_broken_ones(run_well, predictor, tmp_path):
    vectors = predictor.embedder.embed([text(i) for i in range(40)]).vectors
    lists: list = vectors.tolist()
    lists += [None, lists[0][:-1], [float("nan"), *lists[0][1:]], [2 * x for x in lists[0]]]
    table = pa.table({"key": range(44), "vector": pa.array(lists, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "in.parquet")
    labels = {"name": "sport", "description": "games", "synonyms": ["team"]}
    (tmp_path / "labels.yaml").write_text(json.dumps([labels, "markets", "stars"]))
    summary = run_well(
        "--input", str(tmp_path / "in.parquet"), "--embedding-column", "vector",
        "--id-column", "key", "--labels-file", str(tmp_path / "labels.yaml"),
        "--threshold", "0.5", "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert summary["errors"] == {
        "embedding_missing": 1,
        "embedding_wrong_size": 1,
        "embedding_not_finite": 1,
        "embedding_not_unit": 1,
    }
    found = read(tmp_path / "out")
    expected = predictor.predict(vectors, [labels, "markets", "stars"], threshold=0.5)
    for i, wanted in enumerate(expected):
        assert found[str(i)]["label"] == wanted.label
        assert found[str(i)]["score"] == pytest.approx(wanted.score, abs=1e-5)
    assert summary["null_labels"] == sum(p.label is None for p in expected)


def test_the_weekly_loop_and_a_threshold_from_labelled_rows(run_well, classify, folder, tmp_path):
    rows = [{"text": text(i)} for i in range(60)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    store = str(tmp_path / "store")
    embed = ["--input", source, "--store", store, *embedder_flags(folder / "embedder")]
    assert job("embed").main(embed) == 0
    assert EmbeddingStore.open(store).manifest.rows == 60

    first = run_well("--input", store, "--labels", json.dumps(LABELS), "--output",
                     str(tmp_path / "week1"), "--return-scores")  # fmt: skip
    answers = read(tmp_path / "week1").values()
    new = ["--labels", json.dumps([*LABELS[:3], "galaxies"])]
    code, second, said = classify(
        "--input", store, *new, "--output", str(tmp_path / "week2"),
        "--compare-to", str(tmp_path / "week1"), "--tracking.uri", f"sqlite:///{tmp_path}/m.db",
    )  # fmt: skip
    assert code == 0, said
    moved = second["comparison"]["compare/rows_moved"]
    before = {row["id"]: row["label"] for row in answers}
    after = {row["id"]: row["label"] for row in read(tmp_path / "week2").values()}
    assert moved == sum(before[key] != after[key] for key in before)
    assert second["comparison"]["compare/labels_new"] == 1
    logged = MlflowClient(f"sqlite:///{tmp_path}/m.db").get_run(second["mlflow_run_id"])
    assert logged.data.metrics["classify/rows_out"] == 60
    assert logged.data.metrics["compare/rows_moved"] == moved
    assert logged.info.status == "FINISHED"
    report = (tmp_path / "week2" / "_comparison.md").read_text()
    assert 'Gone (1): "stars"' in report
    assert first["rows_out"] == second["rows_out"] == 60

    # labelled rows that are right where the model is surer, so half of them can be answered
    by_score = sorted(answers, key=lambda row: -row["score"])
    gaps = -np.diff([row["score"] for row in by_score])
    cut = 20 + int(np.argmax(gaps[19:40]))  # rows of nearly the same score go together
    assert gaps[cut - 1] > 1e-3
    texts = {f"in.jsonl:{i + 1}": row["text"] for i, row in enumerate(rows)}
    labelled = write_jsonl(
        tmp_path / "labelled.jsonl",
        [
            {"text": texts[row["id"]], "label": row["label"] if right else _another(row["label"])}
            for rank, row in enumerate(by_score)
            for right in [rank < cut]
        ],
    )
    target = ["--target-precision", "1", "--labelled", labelled]
    chosen = run_well(
        "--input", store, "--labels", json.dumps(LABELS), *target,
        "--output", str(tmp_path / "precise"),
    )  # fmt: skip
    assert by_score[cut]["score"] < chosen["threshold"] <= by_score[cut - 1]["score"]
    assert chosen["threshold_choice"].startswith("Threshold")
    assert chosen["null_labels"] == 60 - cut


def _another(label: str) -> str:
    return next(name for name in LABELS if name != label)


def test_a_dry_run_writes_nothing(run_well, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text(i)} for i in range(30)])
    summary = run_well("--input", source, "--labels", json.dumps(LABELS), "--dry-run")
    assert (summary["rows_in"], summary["sample_rows"]) == (30, 30)
    assert summary["expected_seconds"] >= 0
    assert summary["expected_output_bytes"] > 0
    assert sum(rows for _, _, rows in summary["confused"]) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("count", [1, 1000])
def test_label_sets_of_any_size(run_well, tmp_path, count):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": text(i)} for i in range(20)])
    names = [f"{WORDS[i % len(WORDS)]} {i}" for i in range(count)]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    settings = ["--input", source, "--labels-file", str(tmp_path / "labels.txt")]
    summary = run_well(*settings, "--return-scores", "--output", str(tmp_path / "out"))
    rows = read(tmp_path / "out").values()
    assert all([name for name, _ in row["scores"]] == names for row in rows)
    assert all(abs(sum(p for _, p in row["scores"]) - 1) < 1e-3 for row in rows)
    assert summary["scoring"] == ("exact" if count <= 200 else f"shortlist of 100 of {count}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", '["a", "b"]'], "output: give a folder"),
        (["--output", "x"], "give labels"),
        (["--labels", '["a", "a "]', "--output", "x"], "stands twice"),
        (["--labels", '["a"]', "--output", "x", "--text-column", "body"], "no column 'body'"),
        (["--labels", '["a"]', "--output", "x", "--target-precision", "0.9"], "go together"),
        (["--labels", '["a"]', "--output", "x", "--max-errors", "many"], "neither a count"),
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


def test_a_store_of_another_embedder_is_refused(classify, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", [{"text": "a text"}])
    build_sentence_transformer(tmp_path / "other", pooling="cls")
    store = str(tmp_path / "store")
    embed = ["--input", source, "--store", store, *embedder_flags(tmp_path / "other")]
    assert job("embed").main(embed) == 0
    code, _, said = classify("--input", store, "--labels", '["a"]', "--output", str(tmp_path / "o"))
    assert code == 2
    assert "mean" in said
    assert "cls" in said
