"""The endpoint as a user starts it: the README's commands, and the same answers as Python's."""

import json
import re
import shlex
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from jobs.benchmarks.serve import serve_app
from jobs.examples import application, operations
from sce.adaptation.artefact import AdaptedLabels
from sce.client import Client, RequestRefused
from serve.app import main
from tests.serve.conftest import PAGE, settings_of

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CURLS = [block for block in re.findall(r"```bash\n(.*?)```", README, re.S) if "curl" in block]
TEXTS = ["the river rose overnight", "the engine will not start", "thank you", "a b c " * 60]
LABELS = [{"name": "flood", "description": "water", "examples": ["it rained"]}, "engine", "praise"]

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def url(models, tickets, tmp_path_factory):
    model = json.loads(settings_of(models).model_dump_json(exclude={"scaling"}))
    settings = {"models": {"tiny": model}, "label_sets": {"tickets": tickets}}
    settings["cors_origins"] = ["http://127.0.0.1:9000"]
    with serve_app(tmp_path_factory.mktemp("served"), settings) as url:
        yield url


@pytest.mark.parametrize("command", CURLS, ids=range(len(CURLS)))
def test_the_curl_commands_of_the_readme(url, command):
    assert "http://127.0.0.1:8000" in command
    done = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8000", url)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = json.loads(done.stdout)
    body = json.loads(shlex.split(command)[-1])
    assert len(found["data"]) == len(body.get("texts") or body["input"])
    for row in found["data"]:
        assert row["object"] in ("classification", "embedding")
        if row["object"] == "classification":
            assert set(row["scores"]) == set(body["labels"])


def test_the_readme_has_both_kinds_of_request():
    assert {"classify", "embeddings"} <= set(re.findall(r"/v1/(\w+)", "".join(CURLS)))


def test_the_examples_that_ask_a_server(url, capsys, monkeypatch):
    monkeypatch.delenv("SCE_ENDPOINT_TOKEN", raising=False)
    assert application.main(["--url", url, "--threshold", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(application.MESSAGES)
    queues = {line.partition("<-")[0].strip() for line in lines}
    assert queues <= {*application.QUEUES, application.A_PERSON}
    assert f"{application.A_PERSON:12} <- ''" in lines, "nobody reads a blank message by itself"
    assert operations.main(["--url", url, "--requests", "5", "--slowest", "60000"]) == 0
    assert "5 requests: median" in capsys.readouterr().out
    assert operations.main(["--url", url, "--requests", "2", "--slowest", "0"]) == 1


def test_a_page_of_a_named_origin_may_ask_and_no_other(url):
    """As the browser asks before it sends what jobs/examples/browser.html asks."""
    page = (ROOT / "jobs" / "examples" / "browser.html").read_text(encoding="utf-8")
    assert 'method: "POST"' in page
    asked = {"Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "content-type"
    for origin, allowed in (("http://127.0.0.1:9000", True), ("http://127.0.0.1:9001", False)):
        headers = asked | {"Origin": origin}
        answer = requests.options(f"{url}/v1/classify", headers=headers, timeout=30)
        assert (answer.headers.get("Access-Control-Allow-Origin") == origin) == allowed


def test_over_http_as_in_python(url, predictor):
    settings = {"top_k": 2, "return_scores": True, "threshold": 0.3}
    alone = predictor.predict(TEXTS, LABELS, **settings)
    with Client(url) as client:
        vectors = client.embed(TEXTS).vectors
        for found in (
            client.predict(TEXTS, LABELS, **settings),
            client.predict(embeddings=vectors, labels=LABELS, **settings),
            client.predict(TEXTS, [LABELS] * len(TEXTS), **settings),
        ):
            for one, wanted in zip(found, alone, strict=True):
                assert one.label == wanted.label
                assert one.score == pytest.approx(wanted.score, abs=2e-5)
                assert one.scores == pytest.approx(wanted.scores, abs=2e-5)
                assert [name for name, _ in one.top] == [name for name, _ in wanted.top]


def test_a_tree_over_http_as_in_python(url, predictor):
    tree = {"water": ["flood", {"name": "rain", "synonyms": ["it rained"]}], "engine": ["start"],
            "praise": None}  # fmt: skip
    settings = {"top_k": 2, "return_scores": True, "threshold": 0.4}
    alone = predictor.predict(TEXTS, tree, **settings)
    sent = requests.post(f"{url}/v1/classify", json={"texts": TEXTS, "labels": tree}, timeout=10)
    sent.raise_for_status()
    with Client(url) as client:
        for found in (
            client.predict(TEXTS, tree, **settings),
            client.predict(embeddings=client.embed(TEXTS).vectors, labels=tree, **settings),
        ):
            for one, wanted in zip(found, alone, strict=True):
                assert one.label == wanted.label
                assert one.score == pytest.approx(wanted.score, abs=2e-5)
                assert one.scores == pytest.approx(wanted.scores, abs=2e-5)
                assert [name for name, _ in one.path] == [name for name, _ in wanted.path]
    twice = {"water": ["flood", "flood"], "praise": None}
    sent = requests.post(f"{url}/v1/classify", json={"texts": TEXTS, "labels": twice}, timeout=10)
    assert sent.status_code == 422
    assert "the path 'water/flood' stands twice" in sent.json()["error"]["message"]


def test_label_sets_over_http_as_in_python(url, predictor, tickets):
    labels = AdaptedLabels.load(tickets)
    settings = {"top_k": 2, "return_scores": True, "threshold": 0.3}
    with Client(url) as client:
        vectors = client.embed(TEXTS).vectors
        alone = predictor.predict(embeddings=vectors, labels=labels, **settings)
        settings["label_set"] = "tickets"
        assert client.predict(embeddings=vectors, **settings) == alone
        assert [client.predict(embeddings=v[None], **settings)[0] for v in vectors] == alone
        cut = [replace(one, truncated=i == 3) for i, one in enumerate(alone)]
        assert client.predict(TEXTS, **settings) == cut
        assert [client.predict(text, **settings)[0] for text in TEXTS] == cut
        found = client.label_sets()["tickets"]
        assert (found.labels, found.fingerprint) == (labels.names, labels.id)
        with pytest.raises(RequestRefused, match="no label set 'week2'; there are: tickets"):
            client.predict(TEXTS, label_set="week2")
    assert requests.get(f"{url}/v1/label_sets/tickets/report", timeout=10).text == PAGE
    deadline = time.monotonic() + 60  # Ray's agents tell some seconds later
    wanted = 'label_set="tickets"'
    while wanted not in (text := requests.get(f"{url}/metrics", timeout=10).text):
        assert time.monotonic() < deadline, text
        time.sleep(1)


def test_the_page_and_the_document_are_there(url):
    assert "<title>" in requests.get(f"{url}/", timeout=10).text
    for asset in re.findall(
        r'(?:src|href)="([^"]+)"', requests.get(f"{url}/docs", timeout=10).text
    ):
        assert requests.get(url + asset, timeout=10).status_code == 200, asset
    timing = requests.post(
        f"{url}/v1/classify", json={"texts": TEXTS, "labels": ["a", "b"]}, timeout=10
    ).headers["Server-Timing"]
    assert {"model", "classify", "gateway"} <= set(re.findall(r"(\w+);dur=", timing))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--host", "0.0.0.0"], "no token is set"),
        (["--tokens", "short"], "fewer than 16"),
        (["--cors-origins", '["*"]'], "lets every page"),
        (["--cors-origins", '["intranet.example"]'], "cors_origins"),
        (["--tokens-file", "nowhere"], "tokens_file: cannot be read"),
        (["--port", "0"], "port"),
        (["--modell", "x"], "unrecognized arguments"),
        (["--label-sets", "mine=nowhere"], "label_sets.mine: nowhere: no adapted labels there"),
        (["--label-sets", "a/b=nowhere"], "label_sets"),
    ],
)
def test_what_cannot_be_served_is_said(models, capsys, flags, message):
    try:
        code = main(["--model", str(models / "sce"), *flags])
    except SystemExit as exit:  # of argparse
        code = exit.code
    assert code == 2
    assert message in capsys.readouterr().err
