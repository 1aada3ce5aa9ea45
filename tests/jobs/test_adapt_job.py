"""`jobs/adapt.py` in process: texts and store, the same bits however work is shared out, resume,
refusals; and what `jobs/classify.py` answers with what it made."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data import DataContext, ExecutionResources

from jobs import adapt as adapt_job
from jobs import classify as classify_job
from sce.adaptation.artefact import FACTS_FILE, WEIGHTS_FILE, AdaptedLabels
from sce.bulk.output import FolderLock
from sce.embedding.embedder import load_embedder
from sce.embedding.store import EmbeddingStore, embedding_matrix
from tests.tiny_bulk import (
    LABELS,
    build_models,
    embedder_of,
    load_predictor,
    model_flags,
    read_output,
    text,
    write_jsonl,
    write_store,
)
from tests.tiny_models import build_sentence_transformer

ROWS = 90
REST = ["--no-tracking.enabled"]

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_models(tmp_path_factory.mktemp("model"), "sce")


@pytest.fixture(scope="module")
def home(tmp_path_factory, folder):
    """`store`, an embedding store, `labels.yaml`, and what the tests make of them."""
    home = tmp_path_factory.mktemp("home")
    write_store(home / "store", embedder_of(folder), [text(i) for i in range(ROWS)])
    (home / "labels.yaml").write_text(json.dumps({"labels": LABELS, "shares": {"sport": 0.4}}))
    return home


@pytest.fixture
def run(ray_session, capsys):
    """Runs a job; the exit code, its summary, and what it said on standard error."""

    def run(job, *argv):
        code = job.main([*map(str, argv), *REST])
        captured = capsys.readouterr()
        lines = captured.out.strip().splitlines()
        return code, json.loads(lines[-1]) if code == 0 else {}, captured.err

    return run


@pytest.fixture
def adapt(run, folder, home):
    def adapt(*argv, source=None, output="labels"):
        flags = ["--input", source or home / "store", "--output", home / output]
        return run(adapt_job, *model_flags(folder)[:-2], *flags, "--trust", "default", *argv)

    return adapt


def test_labels_are_adapted_once_and_every_door_answers_the_same(adapt, run, folder, home):
    code, summary, said = adapt("--labels-file", home / "labels.yaml")
    assert code == 0, said
    assert (summary["rows"], summary["labels"], summary["adapted"]) == (ROWS, 4, True)
    assert {p.name for p in (home / "labels").iterdir()} >= {
        *("adapted.json", "adapted.safetensors", "labels.json"),
        *("report.md", "report.html", "to_label.jsonl", "charts"),
    }
    assert not (home / ".labels.rounds").exists()
    _, again, _ = adapt("--labels-file", home / "labels.yaml")
    assert again["unchanged"]
    assert again["adapted_labels"] == summary["adapted_labels"]

    labels = AdaptedLabels.load(home / "labels")
    assert labels.names == LABELS
    output = ["--labels-file", home / "labels", "--return-scores", "--output"]
    code, done, said = run(classify_job, "--input", home / "store", *output, home / "by-store")
    assert code == 0, said
    assert (done["scoring"], done["rows_out"]) == ("adapted labels", ROWS)
    rows = read_output(home / "by-store")
    vectors_ND = embedding_matrix(EmbeddingStore.open(home / "store").read()["embedding"])
    predictor = load_predictor(folder)
    found = predictor.predict(embeddings=vectors_ND, labels=labels, return_scores=True)
    for row, one in zip(rows, found, strict=True):
        assert row["label"] == one.label
        assert dict(row["scores"]) == one.scores  # in every bit
    alone = predictor.predict(embeddings=vectors_ND[7:8], labels=labels, return_scores=True)
    assert alone[0].scores == found[7].scores


def test_one_worker_or_two_and_any_order_give_the_same_bytes(adapt, folder, home, tmp_path):
    store = EmbeddingStore.open(home / "store")
    shutil.copytree(home / "store", tmp_path / "shuffled")
    table = store.read()
    table = table.take(pa.array(np.random.default_rng(0).permutation(ROWS)))
    pq.write_table(table, tmp_path / "shuffled" / "part.parquet", row_group_size=7)
    labels = ["--labels", json.dumps(LABELS)], ["--labels", json.dumps(LABELS[::-1])]
    made = []
    for workers, name, source, given in (
        (1, "one", home / "store", labels[0]),
        (2, "two", tmp_path / "shuffled", labels[1]),
    ):
        context = DataContext.get_current().copy()
        context.execution_options.resource_limits = ExecutionResources(cpu=workers)
        with DataContext.current(context):
            code, _, said = adapt(*given, source=source, output=name)
        assert code == 0, said
        made.append([(home / name / file).read_bytes() for file in (WEIGHTS_FILE, FACTS_FILE)])
    assert made[0][0] == made[1][0]
    first, second = (json.loads(facts) for _, facts in made)
    assert first == second


@pytest.mark.system
def test_texts_are_embedded_first_and_labelled_rows_take_part(adapt, home):
    rows = [{"id": f"t{i}", "text": text(i)} for i in range(40)]
    source = write_jsonl(home / "in.jsonl", rows)
    labelled = [{"text": text(100 + i), "label": LABELS[i % 4]} for i in range(36)]
    labelled += [{"text": "nobody has labelled this", "label": ""}]
    write_jsonl(home / "labelled.jsonl", labelled)
    flags = ["--labels", json.dumps(LABELS), "--labelled", home / "labelled.jsonl"]
    code, summary, said = adapt(
        *flags, "--id-column", "id", "--trust", "auto", source=source, output="from-texts"
    )
    assert code == 0, said
    assert EmbeddingStore.open(home / "from-texts-embedded").manifest.rows == 40
    report = AdaptedLabels.load(home / "from-texts").report
    assert report["choice"]["rows"] == 36
    assert "labelled rows" in summary["why"]
    kept = (home / "from-texts" / "to_label.jsonl").read_text()
    assert text(100) in kept  # what was labelled stays in the file to fill in
    code, _, said = adapt(*flags[:2], source=source, output="from-texts")
    assert code == 2
    assert "row(s) that you labelled" in said


def test_a_run_that_was_cut_short_goes_on_after_its_last_round(adapt, home, monkeypatch):
    from sce.workflows import adapt as workflow

    flags = ["--labels", json.dumps(LABELS), "--trust", "bold"]
    code, whole, said = adapt(*flags, output="whole")
    assert code == 0, said
    kept, rounds = workflow._keep, []

    def keep_three(fitter, *rest):
        kept(fitter, *rest)
        rounds.append(fitter.rounds_done)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "_keep", keep_three)
    with pytest.raises(KeyboardInterrupt):
        adapt(*flags, output="cut")
    assert not (home / "cut").exists()
    monkeypatch.setattr(workflow, "_keep", lambda fitter, *rest: rounds.append(fitter.rounds_done))
    code, resumed, said = adapt(*flags, output="cut")
    assert code == 0, said
    assert rounds == [1, 2, 3, 4, 5, 6, 7]  # none was done twice
    assert resumed["adapted_labels"] == whole["adapted_labels"]


@pytest.mark.system
def test_killed_in_the_middle_it_goes_on(adapt, folder, home):
    flags = ["--labels", json.dumps(LABELS), "--trust", "bold"]
    command = [sys.executable, adapt_job.__file__, *model_flags(folder)[:-2], *flags, *REST]
    command += ["--input", home / "store", "--output", home / "killed"]
    process = subprocess.Popen([*map(str, command)], start_new_session=True)
    round_done, deadline = home / ".killed.rounds" / "request.json", time.monotonic() + 120
    while not round_done.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (home / "killed").exists()
    found = []
    for output in ("killed", "undisturbed"):
        code, summary, said = adapt(*flags, output=output)
        assert code == 0, said
        found.append(summary["adapted_labels"])
        assert not (home / f".{output}.rounds").exists()
    assert found[0] == found[1]


@pytest.mark.system
def test_both_in_one_command(run, folder, home):
    rows = [{"id": f"t{i}", "text": text(i), "team": i % 3} for i in range(30)]
    source = write_jsonl(home / "both.jsonl", rows)
    flags = ["--labels", json.dumps(LABELS), "--keep-columns", '["team"]', "--id-column", "id"]
    code, summary, said = run(
        classify_job, *model_flags(folder), "--input", source, *flags, "--adapt",
        "--output", home / "both",
    )  # fmt: skip
    assert code == 0, said
    rows = read_output(home / "both")
    assert [row["id"] for row in rows] == [f"t{i}" for i in range(30)]
    assert [row["team"] for row in rows] == [str(i % 3) for i in range(30)]
    adapted = AdaptedLabels.load(home / "both-labels")
    assert summary["adapted_labels"] == adapted.id
    vectors = load_embedder(embedder_of(folder)).embed([text(i) for i in range(30)]).vectors
    answered = adapted.answer(vectors).top_NT[:, 0]
    assert [row["label"] for row in rows] == [LABELS[k] for k in answered]


def test_what_cannot_be_used_is_refused_before_anything_is_written(adapt, run, folder, home):
    labels = ["--labels", json.dumps(LABELS)]
    build_sentence_transformer(home / "other-embedder", pooling="cls")
    write_store(home / "other", embedder_of(home, "other-embedder"), [text(i) for i in range(20)])
    write_store(home / "few", embedder_of(folder), [text(i) for i in range(3)])
    write_store(home / "same", embedder_of(folder), [text(1)] * 50)
    table = EmbeddingStore.open(home / "store").read()
    vectors_ND = embedding_matrix(table["embedding"]).copy()
    vectors_ND[3, 0] = np.nan
    shutil.copytree(home / "store", home / "nan")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), len(vectors_ND[0]))
    index = table.column_names.index("embedding")
    pq.write_table(table.set_column(index, "embedding", column), home / "nan" / "part.parquet")
    for source, given, said in (
        (home / "other", labels, "cannot be mixed"),
        (home / "few", labels, "3 texts for 4 labels"),
        (home / "same", labels, "different ones for 4 labels"),
        (home / "nan", labels, "'t3'"),
        (home / "store", ["--labels", '["sport"]'], "one label"),
        (home / "store", [], "give labels"),
        (home / "nowhere", labels, "nothing at"),
    ):
        code, _, err = adapt(*given, source=source, output="refused")
        assert (code, said in err) == (2, True), (source, err[-400:])
        assert not (home / "refused").exists()
    (home / "notes").mkdir()
    (home / "notes" / "mine.txt").write_text("mine")
    code, _, err = adapt(*labels, output="notes")
    assert (code, "something else" in err) == (2, True)
    with FolderLock(str(home / ".refused.rounds")):
        code, _, err = adapt(*labels, output="refused")
    assert (code, "another job" in err) == (2, True)


@pytest.mark.system
def test_a_labels_file_that_changed_and_a_folder_cut_short(adapt, run, home):
    file = home / "weekly.yaml"
    file.write_text(json.dumps(LABELS))
    assert adapt("--labels-file", file, output="weekly")[0] == 0
    file.write_text(json.dumps([*LABELS, "refunds"]))
    asked = ["--input", home / "store", "--labels-file", home / "weekly", "--output"]
    code, _, said = run(classify_job, *asked, home / "weekly-answers")
    assert (code, "has changed since" in said) == (2, True)
    code, _, said = run(classify_job, *asked, home / "weekly-answers", "--accept-changed-labels")
    assert code == 0, said
    path = home / "weekly" / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:100])
    code, _, said = run(classify_job, *asked, home / "cut-answers")
    assert (code, "cut short" in said) == (2, True)
    assert not (home / "cut-answers").exists()
