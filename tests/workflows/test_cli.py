"""What a job's process prints, seen from outside."""

import json
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
