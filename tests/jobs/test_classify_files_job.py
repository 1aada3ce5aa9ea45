"""`jobs/classify.py` on an analyst's folder: a German Excel's CSV in, a CSV for it out, its own
output beside the input, what moved since; and mistakes that are said before Ray starts."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from jobs import classify as classify_job
from sce.bulk.output import read_run
from tests.tiny_bulk import LABELS, build_models, model_flags, run_classify, text

ROOT = Path(__file__).resolve().parents[2]
ROWS = 40

pytestmark = pytest.mark.timeout(280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build_models(tmp_path_factory.mktemp("model"), "sce")


@pytest.fixture
def run(ray_session, folder, capsys):
    return partial(run_classify, folder, capsys)


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder with a CSV of a German Excel, and something that is no table."""
    rows = [f'T-{i};"Größe: {text(i)}; bitte";{i},50' for i in range(ROWS)]
    rows[7] = 'T-7;"never closed;7,50'
    lines = ["Ticket;text;Betrag", *rows]
    (tmp_path / "tickets.csv").write_bytes("\r\n".join(lines).encode("cp1252"))
    (tmp_path / "notes.docx").write_text("none")
    return tmp_path


@pytest.mark.system
def test_an_analysts_weeks(run, home):
    asked = ["--input", str(home), "--id-column", "Ticket", "--keep-columns", "*"]
    asked += ["--output-format", "csv"]
    week1 = [*asked, "--labels", json.dumps(LABELS), "--output", str(home / "week1")]
    code, summary, said = run(*week1, "--return-scores", "--save-embeddings", str(home / "store"))
    assert code == 0, said
    assert (summary["rows_in"], summary["errors"]) == (ROWS, {"line_unreadable": 1})
    assert summary["read_as"] == {"tickets.csv": "Windows-1252, semicolons"}
    assert summary["passed_over"]["names"] == ["notes.docx"]
    assert f"{ROWS} rows: {ROWS - 1} with a label, 1 with an error" in said
    assert "tickets.csv was read as Windows-1252, semicolons" in said
    assert "pandas.read_csv" in said

    (path,) = (home / "week1").glob("*.csv")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    first = pd.read_csv(path).sort_values("place").set_index("Ticket")
    assert first.columns.tolist() == [
        *("text", "Betrag", "label", "score", *(f"score: {name}" for name in LABELS)),
        *("truncated", "error", "place"),
    ]
    assert first.loc["T-3", "text"] == f"Größe: {text(3)}; bitte"
    assert first.loc["T-3", "Betrag"] == "3,50"
    assert first["error"].dropna().tolist() == ["line_unreadable"]

    # Touched, and with its own output beside it: nothing to do.
    os.utime(home / "tickets.csv", (1, 1))
    code, summary, said = run(*week1, "--return-scores")
    assert (code, summary.get("unchanged")) == (0, True), said

    labels = [*LABELS[:3], "galaxies"]
    week2 = [*asked, "--labels", json.dumps(labels), "--output", str(home / "week2")]
    compared = ["--compare-to", str(home / "week1"), "--renamed", "stars=galaxies"]
    code, summary, said = run(*week2, *compared, "--threshold", "0.4")
    assert code == 0, said
    assert summary["rows_in"] == ROWS
    second = pd.read_csv(*(home / "week2").glob("*.csv")).set_index("Ticket")
    old = first["label"].replace({"stars": "galaxies"})
    both = old.index[first["error"].isna()]
    old, new = old[both].fillna("-"), second.loc[both, "label"].fillna("-")
    figures = summary["comparison"]
    assert figures["compare/rows_moved"] == (old != new).sum()
    assert figures["compare/rows_to_null"] == (new == "-").sum()
    assert figures["compare/labels_gone"] == 0
    moved = pd.read_parquet(home / "week2" / "_comparison" / "moved.parquet").set_index("Ticket")
    assert sorted(moved.index) == sorted(old.index[old != new])
    assert (moved["label_after"].fillna("-") == new[moved.index]).all()
    report = (home / "week2" / "_comparison" / "report.md").read_text()
    assert 'Renamed: "stars" to "galaxies"' in report
    assert read_run(str(home / "week2")).request["columns"]["id_name"] == "Ticket"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--id-column", "id"], "1 id(s) of the column 'id' stand there again"),
        (["--compare-to", "gone"], "compare_to: there is no folder gone"),
        (["--renamed", "a=b"], "renamed: 'a' is none of the labels of"),
        (["--renamed", "a"], "write it as OLD=NEW"),
        (["--text-column", "body"], "no column 'body'. It has: id, text"),
        (["--output", "in.csv/out"], "cannot be a folder"),
        (["--delimiter", "ab"], "no single character"),
        (["--encoding", "klingon"], "no encoding 'klingon'"),
    ],
)
def test_a_mistake_is_said_within_seconds(tmp_path, folder, flags, message):
    """In a process of its own, as a user meets it: neither torch nor Ray is loaded before."""
    (tmp_path / "in.csv").write_text("id,text\n1,a\n2,b\n1,c\n")
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    summary = {"label_names": ["x", "y"]}
    state = {"request": {"columns": {}}, "seconds": 0, "parts": {}, "summary": summary}
    (earlier / "_run.json").write_text(json.dumps(state))
    argv = ["--input", "in.csv", "--labels", '["x", "y"]', "--output", "out"]
    argv += ["--compare-to", "earlier", *model_flags(folder), *flags]
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "classify.py"), *argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert time.monotonic() - started < 15  # 3 s where nothing else runs beside it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "in.csv"]


def test_labels_that_are_adapted_first_need_no_model(tmp_path, capsys):
    argv = ["--adapt", "--labels", '["a", "b"]', "--input", "nowhere"]
    assert classify_job.main([*argv, "--output", str(tmp_path / "out")]) == 2
    assert "nothing at 'nowhere'" in capsys.readouterr().err


def test_the_checks_load_neither_torch_nor_ray():
    heavy = ("torch", "ray", "mlflow", "transformers")
    code = f"import sys, jobs.classify; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert found.stdout.strip() == "[]", found.stderr
