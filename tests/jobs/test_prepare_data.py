"""The job: exit codes, the closing line of JSON, and nothing half-written."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("sce.workflows.experiment")
JOB = Path(__file__).resolve().parents[2] / "jobs/prepare_data.py"


@pytest.fixture
def main():
    spec = importlib.util.spec_from_file_location("prepare_data_job", JOB)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def arguments(tmp_path, data):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"run_dir": str(tmp_path / "run"), "data": data}))
    return ["--config", str(config)]


def test_done_and_again(main, tmp_path, capsys):
    argv = arguments(tmp_path, {"sources": [{"dataset": "starter"}]})
    assert main(argv) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert summary["rows"] == 6904
    assert sum(summary["counts"]["starter"].values()) == 6904
    assert summary["label_sets"] == 134
    assert Path(summary["path"], "rows.parquet").is_file()
    assert "Rows by dataset" in err
    assert not summary["unchanged"]
    assert main(argv) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["unchanged"]
    assert again["fingerprint"] == summary["fingerprint"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": [{"dataset": "custom", "path": "none.jsonl"}]}, "none.jsonl: no such file"),
        ({"sources": [{"dataset": "huffpost"}]}, "set `path`"),
        ({"sources": [{"dataset": "starter", "pth": "x"}]}, "no such setting"),
        ({"validation_label_sets": 500}, "Allowed: 0 to 109"),
    ],
)
def test_wrong_input_is_exit_code_2_and_writes_nothing(main, tmp_path, capsys, data, message):
    assert main(arguments(tmp_path, data)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
