"""SECURITY.md: the tests that it names are there, its numbers are the code's."""

import re

import cloudpickle
import pytest

from sce.datasets import limits
from sce.errors import MAX_TEXT_BYTES
from sce.storage import documents
from serve.app import build
from serve.auth import Guard
from serve.settings import ServeConfig
from tests.cluster.manifests import ROOT
from tests.serve.conftest import models, settings_of  # noqa: F401  # a fixture

TEXT = " ".join((ROOT / ".github" / "SECURITY.md").read_text().split())
PROMISES = TEXT.split("## What is not promised")[0].split(" - ")[1:]


@pytest.mark.parametrize("promise", PROMISES)
def test_a_test_stands_behind_each_promise(promise):
    named = re.findall(r"`(tests/[\w/]+\.py)`", promise)
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name


def test_its_numbers_are_those_of_the_code():
    for words in (
        f"{limits.MAX_RATIO} times a file's size once decompressed "
        f"(above {limits.RATIO_COUNTS_FROM // 2**20} MiB)",
        f"{MAX_TEXT_BYTES // 2**20} MiB a text",
        f"{limits.MAX_LINE:,} characters a line",
        f"{limits.MAX_ROWS_A_BYTE} rows a byte of Parquet",
        f"{documents.MAX_FILE_BYTES // 2**20} MiB, {documents.MAX_DEPTH} levels, "
        f"{documents.MAX_NODES:,} nodes",
    ):
        assert words in TEXT
    assert limits.ROWS_COUNT_FROM == 1_000_000


def test_it_says_how_to_report_and_is_found():
    assert "Report a vulnerability" in TEXT
    assert len(TEXT.split()) < 600
    for name in ("CONTRIBUTING.md", "cluster/README.md"):
        assert ".github/SECURITY.md" in (ROOT / name).read_text(), name


def test_what_ray_is_given_of_the_endpoint_has_no_token_but_its_hash(models, tmp_path):  # noqa: F811
    token = "a-token-of-this-test-alone"
    file = tmp_path / "tokens"
    file.write_text(f"{token}\n")
    config = ServeConfig(models={"one": settings_of(models)}, tokens_file=file, tokens=token)
    given = cloudpickle.dumps(build(config))
    assert Guard.digest(token) in given
    assert token.encode() not in given
