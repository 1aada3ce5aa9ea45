"""What a job's process prints, seen from outside."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CHATTY_JOB = """
import ray
from sce.workflows.cli import run_job
from sce.config import JobConfig
from sce.distributed.session import ensure_ray

class Settings(JobConfig):
    name: str = "x"

def job(settings):
    ensure_ray()
    @ray.remote(num_cpus=0)
    class Talker:
        def talk(self):
            print("the same line of every worker", flush=True)
    talkers = [Talker.remote() for _ in range(3)]
    ray.get([talker.talk.remote() for talker in talkers])
    return {"name": settings.name}

run_job(Settings, job, "A job.")
"""


WRITING_JOB = """
import ray
from sce.workflows.cli import run_job
from sce.config import JobConfig
from sce.distributed.session import ensure_ray

class Settings(JobConfig):
    name: str = "x"

def job(settings):
    ensure_ray()
    @ray.remote(num_cpus=0)
    def write():
        open(settings.name, "w").close()
    ray.get(write.remote())
    return {}

run_job(Settings, job, "A job.")
"""


STOPPED_JOB = """
import os, sys, time
from sce.workflows.cli import run_job
from sce.config import JobConfig

class Settings(JobConfig):
    name: str = "x"

def job(settings):
    names = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")
    try:
        print(*(os.environ.get(name) for name in names), flush=True)
        time.sleep(60)
    except KeyboardInterrupt as stopped:
        if settings.name:
            stopped.add_note(f"5 rows are kept in {settings.name}.")
        raise

sys.exit(run_job(Settings, job, "A job."))
"""


@pytest.mark.parametrize(
    ("name", "kept"), [("out", "5 rows are kept in out."), ("", "What was finished before stays")]
)
def test_ctrl_c_ends_a_job_with_one_line_and_130(tmp_path, name, kept):
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED_JOB)
    job = subprocess.Popen(
        [sys.executable, str(script), "--name", name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "0"},
    )
    # Into a pipe no bars are drawn; what the user had set is left.
    assert job.stdout.readline() == "0 1\n"
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=30)
    assert job.returncode == 130
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"{script}: interrupted. {kept}")


@pytest.mark.system
def test_the_workers_of_its_own_ray_write_as_a_job_does(tmp_path):
    script = tmp_path / "writing.py"
    script.write_text(WRITING_JOB)
    file = tmp_path / "written"
    argv = [sys.executable, str(script), "--name", str(file), "--umask", "027"]
    subprocess.run(argv, cwd=ROOT, check=True, timeout=120)
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.system
def test_the_summary_is_the_last_line_even_when_ray_has_more_to_say(tmp_path):
    script = tmp_path / "chatty.py"
    script.write_text(CHATTY_JOB)
    ended = subprocess.run(
        [sys.executable, str(script), "--name", "y"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert json.loads(lines[-1]) == {"name": "y"}
    assert any("the same line" in line for line in lines), lines
    assert "\x1b" not in ended.stdout + ended.stderr, "into a pipe there are no colours"
