"""The pages that a repository's site renders: short, opening with a command, with links that lead
somewhere and code that can be read."""

import ast
import re
from pathlib import Path

import pytest

from sce.workflows.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
OPENING = ["jobs", "jobs/examples", "jobs/benchmarks", "serve", "configs", "cluster"]
PAGES = [ROOT / "README.md", *(ROOT / name / "README.md" for name in OPENING)]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def test_the_readme_is_read_in_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


@pytest.mark.parametrize("name", OPENING)
def test_a_page_opens_with_its_command(name):
    title, blank, first, *_ = (ROOT / name / "README.md").read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")
    assert not blank
    assert re.match(r"    \S", first), f"{name}/README.md: {first}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert re.match("https?://", target) or (page.parent / target).exists(), target
    for job in re.findall(r"\bjobs/[\w/]+\.(?:py|html)\b", text):
        assert (ROOT / job).is_file(), job
    for command in re.findall(r"^ {4}(?:\S+=\S+ )*sce ([a-z][\w-]*)", text, re.M):
        assert command in COMMANDS, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_can_be_read(page):
    for language, code in FENCED.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(code)
