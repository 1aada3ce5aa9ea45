"""What takes seconds to import is imported where it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "peft", "ray", "mlflow", "matplotlib", "sklearn", "scipy")


def loaded_by(code: str) -> list[str]:
    """Which of `HEAVY` a fresh Python has loaded after `code`."""
    ending = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ending}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return eval(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("job", sorted(path.stem for path in (ROOT / "jobs").glob("*.py")))
def test_help_waits_for_nothing(job):
    code = f"""
import runpy, sys, contextlib, io
sys.argv = ["jobs/{job}.py", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
    runpy.run_path("jobs/{job}.py", run_name="__main__")
assert "usage" in said.getvalue().lower(), said.getvalue()
"""
    assert loaded_by(code) == []


@pytest.mark.parametrize("workflow", ["classify", "embed"])
def test_who_sends_a_bulk_job_on_its_way_needs_no_model(workflow):
    assert loaded_by(f"import sce.workflows.{workflow}") == []


@pytest.mark.parametrize("process", ["app", "gateway"])
def test_who_starts_the_server_and_who_lets_requests_in_need_no_model(process):
    found = loaded_by(f"import serve.{process}")
    assert not {"torch", "transformers", "peft", "mlflow", "sklearn", "scipy"} & set(found)


def test_the_list_of_commands_waits_for_nothing():
    assert loaded_by("from sce.workflows.commands import main; main(['--help'])") == []
