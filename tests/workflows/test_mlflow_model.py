"""A trained model as one that MLflow loads and serves: real MLflow, a tiny model."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import requests
from mlflow import MlflowClient, pyfunc
from mlflow.exceptions import MlflowException

from sce.client.wire import from_prediction
from sce.model.options import AnswerOptions
from sce.storage import to_place
from sce.workflows.mlflow_model import (
    EXAMPLE,
    begin_model,
    complete_model,
    find_model,
)
from sce.workflows.tracking import Tracker, TrackingConfig
from tests.tiny_bulk import build_models, embedder_of, load_predictor

LABELS = ["markets", "sport", "late parcel"]
TEXTS = ["markets rose", "the team won", "my parcel never came"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return build_models(tmp_path_factory.mktemp("models"), "sce")


@pytest.fixture(scope="module")
def logged(home):
    """A run, and the folder of the model in its store."""
    config = TrackingConfig(uri=f"sqlite:///{home}/runs/mlflow.db", system_metrics=False)
    with Tracker.open(config, "training", None, "x") as tracker:
        model_id = begin_model(tracker, "a: name/", to_place(home / "sce"), {"rows": 3})
        complete_model(tracker, model_id, to_place(home / "sce"), embedder_of(home))
        assert find_model(tracker, "sce-training", to_place(home / "sce")) == model_id
    client = MlflowClient(config.uri)
    model = client.get_logged_model(model_id)
    assert model.status == "READY"
    assert client.get_run(tracker.run_id).outputs.model_outputs[0].model_id == model_id
    return Path(model.artifact_location.removeprefix("file://"))


def test_it_answers_as_the_predictor_does(home, logged):
    model, predictor = pyfunc.load_model(str(logged)), load_predictor(home)
    found = model.predict(
        pd.DataFrame({"text": TEXTS}), params={"labels": LABELS, "return_scores": True}
    )
    expected = predictor.predict(TEXTS, LABELS, return_scores=True)
    assert found["label"].tolist() == [one.label for one in expected]
    assert found["score"].tolist() == pytest.approx([one.score for one in expected])
    assert found["scores"].tolist() == [one.scores for one in expected]
    assert found["error"].tolist() == [None] * 3
    none = model.predict(pd.DataFrame({"text": TEXTS}), params={"labels": LABELS, "threshold": 1.0})
    assert none["label"].tolist() == [None] * 3
    assert list(none) == ["label", "score", "truncated", "error"]


def test_a_row_may_have_labels_of_its_own_with_descriptions(home, logged):
    own = [{"one": "the first", "two": ""}, None, ["three", "four"]]
    found = pyfunc.load_model(str(logged)).predict(
        pd.DataFrame({"text": TEXTS, "labels": own}), params={"labels": LABELS}
    )
    predictor = load_predictor(home)
    for text, labels, label, score in zip(TEXTS, own, found["label"], found["score"]):
        (expected,) = predictor.predict([text], labels or LABELS)
        assert (label, score) == (expected.label, pytest.approx(expected.score))


@pytest.mark.parametrize(
    ("params", "labels", "asked"),
    [
        ({"mode": "multi", "at_least": 1, "thresholds": '{"sport": 0.2}'}, LABELS,
         {"mode": "multi", "at_least": 1, "threshold": {"sport": 0.2}}),
        ({"none_of_these": True, "none_threshold": 0.9, "coverage_cut": 0.1, "top_k": 2,
          "explain": True}, LABELS,
         {"none_of_these": True, "none_threshold": 0.9, "coverage_cut": 0.1, "top_k": 2,
          "explain": True}),
        ({"tree": '{"news": ["markets", "sport"], "late parcel": null}', "threshold": 0.6},
         {"news": ["markets", "sport"], "late parcel": None}, {"threshold": 0.6}),
    ],
)  # fmt: skip
def test_every_option_of_an_answer_is_a_parameter(home, logged, params, labels, asked):
    given = params if "tree" in params else params | {"labels": labels}
    found = pyfunc.load_model(str(logged)).predict(pd.DataFrame({"text": TEXTS}), params=given)
    for row, one in zip(
        found.to_dict("records"), load_predictor(home).predict(TEXTS, labels, **asked)
    ):
        sent = from_prediction(0, one)
        assert {"label", "score", "truncated", "error"} <= set(row)
        same = {name: sent[name] for name in row}
        assert row == same | {"score": pytest.approx(one.score)}
    assert {"labels", "path"} & set(found)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "labels: give them"),
        ({"labels": ["one", "one"]}, "one"),
        ({"labels": LABELS, "threshold": 2.0}, "threshold"),
        ({"labels": LABELS, "threshold": 0.5, "thresholds": "{}"}, "either threshold"),
        ({"labels": LABELS, "thresholds": '{"oil": 0.5}'}, "'oil' is not one of the 3 labels"),
        ({"labels": LABELS, "thresholds": "[1]"}, "an object"),
        ({"labels": LABELS, "tree": '["a"]'}, "either labels or tree"),
        ({"tree": "{a: b"}, "tree: it is no JSON"),
        ({"labels": LABELS, "mode": "multi", "explain": True}, "explain"),
    ],
)
def test_what_is_wrong_is_a_bad_request(logged, params, message):
    with pytest.raises(MlflowException, match=message) as error:
        pyfunc.load_model(str(logged)).predict(pd.DataFrame({"text": TEXTS}), params=params)
    assert error.value.get_http_status_code() == 400


def test_its_files_lie_in_the_store_once_with_signature_and_example(home, logged):
    assert len(list((home / "runs").rglob("model.safetensors"))) == 1
    info = pyfunc.load_model(str(logged)).metadata
    files = (home / "sce").iterdir()
    assert info.model_size_bytes == sum(file.stat().st_size for file in files)
    assert info.get_input_schema().input_names() == ["text", "labels"]
    given = {p.name for p in info.get_params_schema().params}
    assert given - {"labels", "tree", "thresholds"} == {f.name for f in fields(AnswerOptions)}
    example = json.loads((logged / "serving_input_example.json").read_text())
    assert example["params"] == EXAMPLE[1]
    assert "soft-contextualized-encoder==" in (logged / "requirements.txt").read_text()


@pytest.mark.system
def test_mlflow_serves_it(logged):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bin_folder = Path(sys.executable).parent  # of uvicorn, which it starts by that name
    root = str(Path(__file__).resolve().parents[2])
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(logged),
         "--env-manager", "local", "--port", str(port), "--workers", "1"],
        env=os.environ | {"PYTHONPATH": root, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
        start_new_session=True,
    )  # fmt: skip
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while True:
            try:
                if requests.get(f"{url}/ping", timeout=5).ok:
                    break
            except requests.RequestException:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        asked = {"dataframe_records": [{"text": t} for t in TEXTS], "params": {"labels": LABELS}}
        answer = requests.post(f"{url}/invocations", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        rows = answer.json()["predictions"]
        assert [set(row) for row in rows] == [{"label", "score", "truncated", "error"}] * 3
        assert all(row["label"] in LABELS for row in rows)
        refused = requests.post(f"{url}/invocations", json=asked | {"params": {}}, timeout=60)
        assert refused.status_code == 400
        assert "labels: give them" in refused.json()["message"]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait(30)
