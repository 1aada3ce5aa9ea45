"""`jobs/classify.py --long-text chunk`: from texts, into a store of chunks, and from it."""

import json
import shutil

import numpy as np
import pytest

from jobs import embed as embed_job
from sce.embedding.store import CHUNK_SPANS, CHUNK_VECTORS, EmbeddingStore, chunks_of
from tests.tiny_bulk import (
    LABELS,
    build_models,
    load_predictor,
    read_output,
    run_classify,
    text,
    write_jsonl,
)

LONG = [" ".join(f"{text(i)}." for i in range(first, 50)) for first in (0, 17, 33)]
TEXTS = [LONG[0], "short", LONG[1], " ", LONG[2], LONG[0]]
pytestmark = pytest.mark.system

CHUNKED = ["--labels", json.dumps(LABELS), "--long-text", "chunk", "--return-scores"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = build_models(tmp_path_factory.mktemp("model"), "sce")
    write_jsonl(folder / "in.jsonl", [{"text": one} for one in TEXTS])
    return folder


@pytest.fixture(scope="module")
def store(folder):
    """Made by jobs/embed.py."""
    place = folder / "store"
    embedder = ["--embedder.kind", "sentence_transformers", "--embedder.dtype", "float32"]
    embedder += ["--embedder.model", str(folder / "embedder"), "--engine", "process"]
    asked = ["--input", str(folder / "in.jsonl"), "--store", str(place), "--long-text", "chunk"]
    assert embed_job.main([*asked, *embedder, "--max-errors", "50%"]) == 0
    return EmbeddingStore.open(place)


def test_a_store_has_the_chunks_of_each_row_and_their_mean(folder, store):
    assert store.manifest.chunks is not None
    table = store.read().sort_by("place")
    counts = [len(row) for row in table[CHUNK_VECTORS].to_pylist()]
    assert counts[3] == 0
    assert counts[1] == 1
    assert min(counts[0], counts[2], counts[4]) > 2
    assert not any(table["truncated"].to_pylist())
    good = [0, 1, 2, 4, 5]
    expected, _ = load_predictor(folder).embedder.embed_chunks([TEXTS[i] for i in good])
    found = chunks_of(*(table.take(good)[name] for name in (CHUNK_VECTORS, CHUNK_SPANS)))
    np.testing.assert_array_equal(found.spans_C2, expected.spans_C2)
    np.testing.assert_allclose(found.vectors_CD, expected.vectors_CD, atol=1e-5)
    means = np.stack(table.take(good)["embedding"].to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(means, expected.mean_vectors(), atol=1e-5)


@pytest.mark.parametrize("pooling", ["vector", "max"])
def test_answers_from_the_store_are_those_from_the_texts(folder, store, capsys, pooling):
    asked = [*CHUNKED, "--pooling", pooling, "--engine", "process", "--max-errors", "50%"]
    outputs = []
    for name, source in (("texts", folder / "in.jsonl"), ("store", store.folder)):
        output = folder / f"{name}-{pooling}"
        argv = [*asked, "--input", str(source), "--output", str(output)]
        code, summary, said = run_classify(folder, capsys, *argv)
        assert code == 0, said
        assert (summary["rows_out"], summary["truncated"]) == (6, 0)
        outputs.append(read_output(output))
    wanted = load_predictor(folder).predict(TEXTS, LABELS, long_text="chunk", pooling=pooling)
    for one, other, expected in zip(*outputs, wanted, strict=True):
        assert one["error"] == other["error"] == expected.error
        assert one["label"] == other["label"] == expected.label
        where = None if expected.where is None else dict(zip(("start", "end"), expected.where))
        assert one["where"] == other["where"] == where
        if where is not None:
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert other["score"] == pytest.approx(expected.score, abs=1e-5)


def test_what_does_not_go_together_is_refused(folder, store, capsys):
    plain = folder / "plain"
    argv = ["--labels", json.dumps(LABELS), "--engine", "process", "--max-errors", "50%"]
    source = ["--input", str(folder / "in.jsonl"), "--save-embeddings", str(plain)]
    code, summary, said = run_classify(
        folder, capsys, *argv, *source, "--output", str(folder / "plain-answers")
    )
    assert code == 0, said
    assert summary["truncated"] == 4
    for source, what in (
        (["--input", str(plain)], "one vector a text"),
        (["--input", str(folder / "in.jsonl"), "--save-embeddings", str(plain)], "new folder"),
    ):
        output = folder / "refused"
        shutil.rmtree(output, ignore_errors=True)
        code, _, said = run_classify(
            folder, capsys, *argv, "--long-text", "chunk", *source, "--output", str(output)
        )
        assert code == 2
        assert what in said
    code, _, said = run_classify(folder, capsys, *argv, *source, "--pooling", "max", "--dry-run")
    assert code == 2
    assert "long_text 'chunk'" in said
