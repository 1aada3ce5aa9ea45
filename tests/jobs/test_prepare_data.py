"""The job: exit codes, the closing line of JSON, and nothing half-written."""

import json
from pathlib import Path

import pytest

from sce.workflows.cli import run_job
from sce.workflows.experiment import Experiment
from sce.workflows.prepare import prepare


def main(argv):
    return run_job(Experiment, prepare, "Prepare the data.", argv)


def arguments(tmp_path, data):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"run_dir": str(tmp_path / "run"), "data": data}))
    return ["--config", str(config)]


def test_done_and_again(tmp_path, capsys):
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
def test_wrong_input_is_exit_code_2_and_writes_nothing(tmp_path, capsys, data, message):
    assert main(arguments(tmp_path, data)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
