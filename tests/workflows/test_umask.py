"""Who may read what a job has written, seen from outside, where the shell's own umask is 022."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from sce.config import JobConfig, load_config
from sce.errors import ConfigError
from sce.model.weights import save_weights
from sce.workflows.bulk_settings import ClassifyConfig
from sce.workflows.cli import run_job
from sce.workflows.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]

JOBS = """
import sys, tempfile
from pathlib import Path
from sce.storage import cached_folder, put, replace_folder, write_text
from sce.workflows.bulk_settings import ClassifyConfig
from sce.workflows.cli import run_job
from sce.workflows.tracking import Tracker

def job(config):
    with Tracker.open(config.tracking, "bulk") as tracker:
        tracker.log_params(config.model_dump(mode="json"))
    write_text(config.output / "state.json", "{}")
    with replace_folder(config.output / "model", "a") as new:
        (new / "a").write_text("a")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "a").write_text("a")
        put(Path(scratch) / "a", config.output / "put" / "a")
    cached_folder("key", lambda folder: (folder / "a").write_text("a"))
    return {"run": tracker.run_id}

for flags in (["--output", "own"], ["--output", "shared", "--umask", "022"]):
    uri = f"sqlite:///{flags[1]}/mlflow.db"
    run_job(ClassifyConfig, job, "A job.", [*flags, "--tracking.uri", uri])
"""


@pytest.mark.system
def test_what_a_job_writes_is_its_users_alone_unless_it_is_told_otherwise(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SCE_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", JOBS],
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        umask=0o022,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)["run"] for line in done.stdout.splitlines())
    modes = {
        str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777)
        for path in tmp_path.rglob("*")
    }
    for output, file, folder in (("own", 0o600, 0o700), ("shared", 0o644, 0o755)):
        there = {path: mode for path, mode in modes.items() if path.split("/")[0] == output}
        expected = {"mlflow.db", "mlflow_artifacts", "state.json", "model/a", "put/a"}
        assert {f"{output}/{name}" for name in expected} <= there.keys()
        assert set(there.values()) == {oct(file), oct(folder)}
    assert modes["cache/sce"] == oct(0o700)


def test_weights_are_read_by_whom_the_files_beside_them_are(tmp_path):
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertModel(BertConfig(**sizes, num_hidden_layers=1, vocab_size=9))
    before = os.umask(0o022)
    try:
        save_weights(model, tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_it_is_no_part_of_what_an_output_or_a_run_is():
    for kind in (ClassifyConfig, Experiment):
        given = load_config(kind, ["--umask", "027"], "job", "")
        assert given.umask == "027"
        assert "umask" not in given.model_dump()
        assert given.model_dump(mode="json") == kind().model_dump(mode="json")


@pytest.mark.parametrize("wrong", ["22", "0o22", "777", "177", "099", "077 ", "", "00022"])
def test_what_is_no_umask_that_leaves_the_owner_in_is_refused(wrong):
    with pytest.raises(ConfigError, match="umask"):
        load_config(JobConfig, [f"--umask={wrong}"], "job", "")


def test_yaml_reads_it_as_a_number_unless_it_is_quoted(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("umask: 022\n")
    with pytest.raises(ConfigError, match='write it in quotes, umask: "022"'):
        load_config(JobConfig, ["--config", str(file)], "job", "")
    file.write_text('umask: "0022"\n')
    assert load_config(JobConfig, ["--config", str(file)], "job", "").umask == "0022"


def test_a_job_that_is_called_leaves_the_umask_as_it_was(monkeypatch):
    monkeypatch.setenv("SCE_UMASK", "007")
    before, during = os.umask(0o022), []
    try:
        run_job(JobConfig, lambda config: during.append(os.umask(0o007)) or {}, "", [])
        assert (during, os.umask(0o022)) == ([0o007], 0o022)
    finally:
        os.umask(before)
