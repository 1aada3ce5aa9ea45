"""An output and a store as they stand, in the tools that people have."""

import csv
from pathlib import Path

import pandas as pd
import pyarrow.dataset as pads
import pytest

from jobs import classify as classify_job
from tests.tiny_bulk import LABELS, build_models, model_flags, text, write_jsonl

ROWS = 30
COLUMNS = ["ticket", "text", "label", "score", "truncated", "error", "place"]

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def home(ray_session, tmp_path_factory) -> Path:
    """Outputs in every format, compared with one another, and a store."""
    home = tmp_path_factory.mktemp("home")
    models = build_models(tmp_path_factory.mktemp("model"), "sce")
    rows = [{"ticket": f"t{i}", "text": text(i) if i else ""} for i in range(ROWS)]
    source = ["--input", write_jsonl(home / "in.jsonl", rows), "--id-column", "ticket"]
    flags = [*model_flags(models), "--no-tracking.enabled", *source, "--keep-columns", "text"]
    for name in ("parquet", "csv", "jsonl"):
        more = ["--output", str(home / name), "--output-format", name]
        more += ["--save-embeddings", str(home / "store")] if name == "parquet" else []
        more += ["--compare-to", str(home / "parquet")] if name != "parquet" else []
        labels = [flag for label in LABELS for flag in ("--labels", label)]
        assert classify_job.main([*flags, *labels, *more]) == 0
    again = ["--compare-to", str(home / "csv"), "--output", str(home / "compared")]
    assert classify_job.main([*flags, *labels, *again]) == 0
    return home


@pytest.mark.parametrize("name", ["parquet", "compared"])
def test_pandas_and_arrow_read_the_folder(home, name):
    found = pd.read_parquet(home / name)
    assert found.columns.tolist() == COLUMNS
    assert found["error"].isna().sum() == ROWS - 1
    assert pads.dataset(home / name).count_rows() == ROWS
    assert len(pd.read_parquet(home / "store")) == ROWS


def test_pandas_reads_the_other_formats(home):
    (path,) = (home / "csv").glob("part-*.csv")
    table = pd.read_csv(path)
    assert table.columns.tolist() == COLUMNS
    with path.open(encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.DictReader(file))) == ROWS
    (path,) = (home / "jsonl").glob("part-*.jsonl")
    lines = pd.read_json(path, lines=True)
    assert lines["error"].isna().sum() == ROWS - 1
    assert (lines.set_index("ticket")["label"].dropna().isin(LABELS)).all()


@pytest.mark.parametrize("name", ["parquet", "compared", "store"])
def test_duckdb_and_polars_read_the_pattern(home, name):
    pattern = f"{home / name}/*.parquet"
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    assert duckdb.sql(f"select count(*) from '{pattern}'").fetchall() == [(ROWS,)]
    assert polars.scan_parquet(pattern).collect().height == ROWS
    assert polars.read_parquet(pattern)["error"].null_count() == ROWS - 1
    nulls = duckdb.sql(f"select count(*) from '{pattern}' where error is null").fetchall()
    assert nulls == [(ROWS - 1,)]
