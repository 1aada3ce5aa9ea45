"""Bulk jobs by one process beside the job, which give what they give by actors."""

import json
from functools import partial
from pathlib import Path

import pytest

from jobs import adapt as adapt_job
from jobs import embed as embed_job
from sce.bulk.corpus import Columns, open_corpus
from sce.distributed import one_process
from sce.distributed.engine_choice import choose_workers, early_process
from sce.distributed.settings import ResourcesConfig
from sce.errors import ConfigError
from tests.tiny_bulk import (
    LABELS,
    build_models,
    embedder_of,
    run_classify,
    text,
    write_jsonl,
    write_store,
)

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = build_models(tmp_path_factory.mktemp("model"), "sce")
    write_jsonl(folder / "in.jsonl", [{"id": f"t{i}", "text": text(i)} for i in range(40)])
    return folder


def rows_of(output: Path) -> bytes:
    (file,) = output.glob("part-*.parquet")
    return file.read_bytes()


@pytest.mark.system  # block by block: tests/distributed/test_one_process.py
def test_one_process_gives_what_actors_give(ray_session, folder, capsys, tmp_path):
    job = partial(run_classify, folder, capsys, "--id-column", "id", "--resources.use-gpu", "false")
    found = {}
    for engine in ("ray", "process"):
        told = ["--engine", engine, "--resources.cpus-per-embed-actor", "1"]
        store, output = tmp_path / f"{engine}-store", tmp_path / engine
        asked = ["--labels", json.dumps(LABELS), "--input", str(folder / "in.jsonl")]
        written = ["--save-embeddings", str(store), "--output", str(output)]
        code, found[engine], said = job(*told, *asked, *written, "--return-scores")
        assert code == 0, said
        assert found[engine]["engine"] == engine
    assert rows_of(tmp_path / "process") == rows_of(tmp_path / "ray")
    assert rows_of(tmp_path / "process-store") == rows_of(tmp_path / "ray-store")
    same = "rows_in", "rows_out", "errors", "truncated", "null_labels", "labels", "scoring"
    assert [found["process"][name] for name in same] == [found["ray"][name] for name in same]

    # Other labels on the store; the likely rename is found by vectors that the process makes.
    most = next(iter(found["process"]["labels"]))
    others = [name.title() if name == most else name for name in LABELS]
    asked = ["--labels", json.dumps(others), "--input", str(tmp_path / "process-store")]
    written = ["--output", str(tmp_path / "next"), "--compare-to", str(tmp_path / "process")]
    code, summary, said = job("--engine", "process", *asked, *written)
    assert code == 0, said
    assert summary["comparison"]["likely_renamed"] == {most: most.title()}

    code, summary, said = job("--engine", "process", *asked, "--dry-run")
    assert code == 0, said
    assert (summary["rows_in"], summary["sample_rows"]) == (40, 40)


def test_a_store_by_one_process(folder, capsys, tmp_path):
    flags = ["--input", str(folder / "in.jsonl"), "--store", str(tmp_path / "store")]
    embedder = embedder_of(folder)
    flags += ["--embedder.kind", embedder.kind, "--embedder.model", str(embedder.model)]
    assert embed_job.main([*flags, "--engine", "process"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["rows_out"], summary["embedded"], summary["errors"]) == (40, 40, {})
    assert summary["seconds"] > 0


class Process:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_who_is_chosen(folder, monkeypatch):
    corpus, columns = open_corpus([str(folder / "in.jsonl")]), Columns(text="text")
    choose = partial(choose_workers, corpus=corpus, columns=columns, actors=lambda: "actors")
    process = Process()
    assert choose("auto", process, has_checkpoint=False) is process
    assert choose("auto", None, has_checkpoint=False) == "actors"
    assert not process.closed
    assert choose("auto", process, has_checkpoint=True) == "actors"
    assert process.closed
    with pytest.raises(ConfigError, match="engine: ray began this output"):
        choose("process", Process(), has_checkpoint=True)
    with pytest.raises(ConfigError, match="engine: process is for small inputs"):
        choose("process", Process(), has_checkpoint=False, rows_per_file=39)


def test_no_process_is_started_for_actors(monkeypatch):
    monkeypatch.setattr(one_process.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    with early_process("ray", ResourcesConfig(), []) as process:
        assert process is None


def test_labels_adapted_here_are_those_of_the_cluster(ray_session, folder, capsys, tmp_path):
    embedder = embedder_of(folder)
    store = write_store(tmp_path / "store", embedder, [text(i) for i in range(60)])
    flags = ["--input", store, "--labels", json.dumps(LABELS), "--no-tracking.enabled"]
    flags += ["--embedder.kind", embedder.kind, "--embedder.model", str(embedder.model)]
    ids = []
    for engine in ("process", "ray"):
        assert adapt_job.main([*flags, "--engine", engine, "--output", str(tmp_path / engine)]) == 0
        ids.append(json.loads(capsys.readouterr().out.splitlines()[-1])["adapted_labels"])
    assert ids[0] == ids[1]


def test_a_store_says_what_it_was_computed_in(folder, capsys, tmp_path):
    embedder = embedder_of(folder)
    flags = ["--store", str(tmp_path / "store"), "--embedder.kind", embedder.kind]
    flags += ["--embedder.model", str(embedder.model), "--engine", "process"]
    found = []
    for dtype, rows in (("float32", 5), ("bfloat16", 8), ("float32", 8)):
        lines = [{"id": f"t{i}", "text": text(i)} for i in range(rows)]
        write_jsonl(tmp_path / "in.jsonl", lines)
        asked = ["--input", str(tmp_path / "in.jsonl"), "--embedder.dtype", dtype]
        assert embed_job.main([*flags, *asked]) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        found.append((summary["embedded"], summary["dtype"]))
    # Rows are not embedded again for other numbers; both are of one embedder.
    assert found == [(5, "float32"), (3, "bfloat16, float32"), (0, "bfloat16, float32")]
