"""`jobs/classify.py --roots`, as `/v1/batches` runs it: links are refused or passed over, outputs
lie below their root, and what a caller is told quotes no file."""

import json
from functools import partial
from pathlib import Path

import pytest

from jobs import classify as classify_job
from sce.bulk.corpus import Columns, open_corpus, plan_file
from sce.bulk.reading import read_shard
from sce.storage import rooted_place
from tests.tiny_bulk import (
    LABELS,
    build_models,
    embedder_of,
    model_flags,
    read_output,
    run_classify,
    text,
    write_store,
)

ASKED = ("--labels", json.dumps(LABELS))
SECRET = "id;hunter2\n1;swordfish\n"

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build_models(tmp_path_factory.mktemp("model"), "sce")


@pytest.fixture
def roots(tmp_path) -> Path:
    (tmp_path / "in" / "tickets").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    lines = [json.dumps({"text": text(i)}) for i in range(20)]
    (tmp_path / "in" / "tickets" / "a #1.jsonl").write_text("\n".join(lines))
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x.csv").write_text(SECRET)
    return tmp_path


@pytest.fixture
def run(ray_session, folder, capsys, roots):
    bounds = ("--roots", str(roots / "in"), "--roots", str(roots / "out"))
    return partial(run_classify, folder, capsys, *bounds, *ASKED)


def test_a_rooted_job_answers_goes_on_and_is_the_job_that_it_would_be(run, roots):
    asked = ["--input", str(roots / "in"), "--output", str(roots / "out" / "a b")]
    asked += ["--output-format", "jsonl"]
    (roots / "in" / "x.csv").symlink_to(roots / "secret" / "x.csv")
    (roots / "in" / "folder").symlink_to(roots / "secret")
    code, summary, said = run(*asked)
    assert code == 0, said
    assert (summary["rows_out"], summary["output"]) == (20, str(roots / "out" / "a b"))
    assert set(summary["passed_over"]["names"]) == {"x.csv", "folder"}
    rows = read_output(roots / "out" / "a b")
    assert [row["id"] for row in rows] == [f"tickets/a #1.jsonl:{i + 1}" for i in range(20)]
    code, summary, said = run(*asked)
    assert (code, summary.get("unchanged")) == (0, True), said
    assert "rooted://" not in (roots / "out" / "a b" / "_run.json").read_text()
    assert not (roots / "out" / "mlflow.db").exists()


def test_an_output_through_a_link_is_refused(run, roots):
    (roots / "out" / "link").symlink_to(roots / "secret")
    code, _, said = run("--input", str(roots / "in"), "--output", str(roots / "out" / "link" / "y"))
    assert code == 2
    assert "is a link, and links below" in said
    assert [path.name for path in (roots / "secret").iterdir()] == ["x.csv"]


def test_a_store_below_a_root(folder, roots, capsys):
    """Refused before Ray starts, as another is read."""
    store = write_store(roots / "in" / "store", embedder_of(folder), [text(i) for i in range(9)])
    uri = rooted_place(store, [str(roots / "in")])
    corpus, columns = open_corpus([uri]), Columns(text=None, embedding="embedding", id="row_id")
    (shard,) = plan_file(corpus.files[0], 0, columns).shards
    assert [len(table) for table in read_shard(shard, columns)] == [9]
    (roots / "in" / "store" / "part.parquet").rename(roots / "secret" / "part.parquet")
    (roots / "in" / "store" / "part.parquet").symlink_to(roots / "secret" / "part.parquet")
    bounds = ("--roots", str(roots / "in"), "--roots", str(roots / "out"), *ASKED)
    asked = ("--input", store, "--output", str(roots / "out" / "stored"))
    code, _, said = run_classify(folder, capsys, *bounds, *asked)
    assert code == 2
    assert "is a link" in said


def test_what_a_caller_is_told_quotes_no_file(folder, roots, capsys):
    """The refusals come before Ray starts."""
    bounds = ("--roots", str(roots / "in"), "--roots", str(roots / "out"), "--no-tracking.enabled")
    asked = [*model_flags(folder), *ASKED, *bounds, "--output", str(roots / "out" / "new")]
    (roots / "in" / "x.csv").symlink_to(roots / "secret" / "x.csv")
    (roots / "in" / "own.csv").write_text(SECRET)
    (roots / "in" / "twice.csv").write_text("hunter2;hunter2\n1;2\n")
    for name, reason in {
        "x.csv": "is a link, and links below|nothing to read at",
        "own.csv": "has no column 'text'",
        "twice.csv": "stands there twice",
        "../secret/x.csv": "does not lie below",
    }.items():
        assert classify_job.main([*asked, "--input", f"{roots}/in/{name}"]) == 2
        captured = capsys.readouterr()
        told = json.loads(captured.out.splitlines()[-1])["error"]
        assert any(part in told for part in reason.split("|")), told
        assert "hunter2" not in told
        assert "rooted://" not in told + captured.err
        assert ("hunter2" in captured.err) == (name in ("own.csv", "twice.csv"))
