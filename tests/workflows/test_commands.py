"""The command `sce`: what it lists, what it runs, and what an installation holds."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from sce.config import load_config
from sce.errors import ConfigError
from sce.storage.recipes import recipes
from sce.workflows.commands import COMMANDS, help_text, main, source_of, title
from sce.workflows.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]


def test_every_job_but_the_benchmarks_is_a_command():
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert set(COMMANDS.values()) == jobs - {"benchmark", "epoch_cost"} | {"serve.app"}


def test_the_list_fits_a_terminal_and_a_line_says_what_each_does(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert said == help_text() + "\n"
    assert max(map(len, said.splitlines())) <= 80
    for name in COMMANDS:
        assert f"  {name}" in said
        assert title(name).endswith("."), f"{name}: the first line is a sentence"


def test_a_misspelt_command_names_the_right_one(capsys):
    assert main(["clasify"]) == 2
    assert "Do you mean 'classify'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"serve"}))  # it imports Ray
def test_the_help_of_a_command_shows_it_as_it_is_typed(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.startswith(f"usage: sce {name} [--config FILE] [settings]\n\n{title(name)}")
    assert f"\n    sce {name} " in said or f"\n    sce {name}\n" in said
    assert "\n    python " not in said
    sections = [line for line in said.splitlines() if line.endswith(":") and line[0] != " "]
    assert sections.index("every command:") >= 1, "a command's own settings come first"
    for noise in ("RemotePath", "(default: None)", "(undefined)", "SecretStr"):
        assert noise not in said


def test_a_job_is_the_same_program_by_its_file(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    by_file = [sys.executable, str(source_of("compare")), "--methods"]
    done = subprocess.run(by_file, capture_output=True, text=True, check=False, cwd=ROOT)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--methods"])
    assert done.returncode == ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].removeprefix("sce compare: ") in done.stderr


def test_a_recipe_goes_by_its_name_where_no_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = load_config(Experiment, ["--config", "quickstart/inbox"], "job", "")
    file = ROOT / "configs" / "quickstart" / "inbox.yaml"
    by_file = load_config(Experiment, ["--config", str(file)], "job", "")
    assert by_name.model_dump() == by_file.model_dump()
    news = load_config(Experiment, ["--config", "news"], "job", "")
    assert news.name == "sce-news", "with what it includes"
    assert not {name for name in recipes() if name.endswith(("data", "/sce"))}
    for name in ("quickstrat", "configs/quickstart/sce.yaml"):
        with pytest.raises(ConfigError, match=r"no file .* and no recipe: base, .*quickstart"):
            load_config(Experiment, ["--config", name], "job", "")
    Path("quickstart").write_text("name: mine\n")
    assert load_config(Experiment, ["--config", "quickstart"], "job", "").name == "mine"


def test_a_module_that_workers_would_take_for_the_server_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("serve.py").write_text("")
    assert main(["serve"]) == 2
    assert str(tmp_path / "serve.py") in capsys.readouterr().err


def test_an_installation_names_every_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "sce").rglob("__init__.py")}
    expected = {".".join(folder.parts) for folder in folders}
    beside = {"sce.configs", "sce.jobs", "serve"}
    assert set(project["tool"]["setuptools"]["packages"]) == expected | beside
    assert project["project"]["scripts"] == {"sce": "sce.workflows.commands:main"}


@pytest.mark.system
def test_a_wheel_holds_what_the_commands_need(tmp_path):
    argv = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    copied = tmp_path / "checkout"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (copied / name).parent.mkdir(parents=True, exist_ok=True)
            (copied / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*argv, "-w", str(tmp_path), str(copied)], check=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    needed = {"serve/page.html", "sce/datasets/starter/news.jsonl", "sce/datasets/synonyms.yaml"}
    needed |= {f"sce/configs/{p.relative_to(ROOT / 'configs')}" for p in recipes().values()}
    needed |= {f"sce/jobs/{job}.py" for job in set(COMMANDS.values()) - {"serve.app"}}
    assert needed <= held
    tops = {name.split("/")[0] for name in held if ".dist-info" not in name}
    assert tops == {"sce", "serve"}
