"""Labels that were fitted to a corpus, behind the endpoint: the same answers as in Python, which
model has which, every refusal, and others that come while the model answers."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

import serve.model
from sce.adaptation.artefact import FACTS_FILE, AdaptedLabels
from sce.config import load_config
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.errors import ConfigError
from sce.model.options import Scoring
from sce.training.fresh_model import build_model
from sce.training.settings import ModelConfig
from serve.app import build
from serve.auth import Guard
from serve.ingress import Ingress
from serve.label_sets import match_label_sets
from serve.model import ModelReplica
from serve.routes import REPORT_HEADERS, make_app
from serve.settings import ServeConfig
from serve.work import ModelRequest, NoSuchLabelSet
from tests.serve.conftest import NAMES, PAGE, make_engine, run, save_label_set, settings_of
from tests.serve.test_gateway import LIMITS, LocalPort, refusal
from tests.serve.test_replica import NoMetrics, deployments, swapped
from tests.tiny_models import build_sentence_transformer

TEXTS = ["the river rose overnight", "the engine will not start", "thank you", "a b c " * 60, "b"]


@pytest.fixture
def client(loaded, with_sets) -> Iterator[TestClient]:
    """`plain` is the default and has no label set, `fitted` has both, `twin` has them too."""
    port = LocalPort(make_engine(with_sets))
    models = {"plain": LocalPort(make_engine(loaded)), "fitted": port, "twin": port}
    app = make_app(Ingress(models, Guard([]), LIMITS))
    with TestClient(app, client=("127.0.0.1", 1), base_url="http://localhost") as client:
        yield client


def classify(client, **body) -> list[dict[str, Any]]:
    response = client.post("/v1/classify", json={"label_set": "tickets"} | body)
    assert response.status_code == 200, response.text
    return response.json()["data"]


def test_over_http_as_in_python_to_the_bit(client, predictor, tickets):
    labels = AdaptedLabels.load(tickets)
    settings = {"top_k": 3, "return_scores": True}
    coded = client.post("/v1/embeddings", json={"input": TEXTS}).json()["data"]
    vectors = [row["embedding"] for row in coded]
    vectors_ND = np.array(vectors, np.float32)
    scores = [one.score for one in predictor.predict(embeddings=vectors_ND, labels=labels)]
    settings["threshold"] = sorted(scores)[2]
    alone = predictor.predict(embeddings=vectors_ND, labels=labels, **settings)
    assert len({one.top[0][0] for one in alone}) > 1, "the rows do not differ"
    assert {one.label is None for one in alone} == {True, False}, "the threshold decides nothing"
    for found in (
        classify(client, embeddings=vectors, **settings),
        [classify(client, embeddings=[vector], **settings)[0] for vector in vectors],
        classify(client, embeddings=vectors[::-1] * 3, **settings)[: len(vectors)][::-1],
        classify(client, texts=TEXTS, model="fitted", **settings),  # the cache has their vectors
        [classify(client, texts=text, model="fitted", **settings)[0] for text in TEXTS],
    ):
        for row, one in zip(found, alone, strict=True):
            assert row["label"] == one.label
            assert row["score"] == one.score
            assert list(row["scores"].items()) == list(one.scores.items())
            assert [(top["label"], top["score"]) for top in row["top"]] == one.top


def test_texts_have_the_labels_of_python(client, predictor, tickets):
    labels = AdaptedLabels.load(tickets)
    for one, row in zip(predictor.predict(TEXTS, labels), classify(client, texts=TEXTS)):
        assert row["label"] == one.label
        # An embedder's vector depends on its neighbours in the last bits.
        assert row["score"] == pytest.approx(one.score, abs=1e-3)
    assert [row["truncated"] for row in classify(client, texts=TEXTS)] == [False] * 3 + [
        True,
        False,
    ]


def test_the_encoder_has_no_part_in_it(with_sets):
    lanes: list[str] = []

    async def ask():
        engine = make_engine(with_sets, report=lambda batch: lanes.append(batch.lane))
        found = await engine.answer(ModelRequest(TEXTS, "tickets", Scoring(9, True)))
        with pytest.raises(NoSuchLabelSet):
            await engine.answer(ModelRequest(TEXTS, "none"))
        engine.close()
        return found

    found = run(ask())
    assert set(lanes) == {"embed"}
    assert found.names == NAMES
    assert found.answers.top_NT.shape == (len(TEXTS), len(NAMES))
    assert found.label_tokens == 0
    assert found.seconds["classify"] >= 0


def test_rows_have_their_own_errors(client):
    found = classify(client, texts=["", "fine", "word " * 600], truncate=False)
    assert [row["error"] for row in found] == ["text_empty", None, "text_too_long"]
    assert [row["label"] in NAMES for row in found] == [False, True, False]
    assert [row["error"] for row in classify(client, embeddings=[[1.0], "!"])] == [
        "embedding_wrong_size", "embedding_not_numbers",
    ]  # fmt: skip
    assert classify(client, texts=[]) == []


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "said"),
    [
        ({"label_set": "no"}, 404, "label_set_not_found", "label_set", "bare, tickets"),
        ({"label_set": "tickets", "labels": ["a"]}, 422, "invalid_request", None, "exactly one"),
        (
            {"label_set": "tickets", "candidate_labels": ["a"]},
            422, "invalid_request", None, "exactly one",
        ),
        ({}, 422, "invalid_request", None, "label_set"),
        ({"label_set": ["tickets"]}, 422, "invalid_value", "label_set", "label_set"),
        (
            {"label_set": "tickets", "model": "plain"},
            422, "label_set_mismatch", "label_set", "fitted, twin",
        ),
        ({"label_set": "tickets", "model": "no"}, 404, "model_not_found", "model", "'no'"),
        ({"label_set": "tickets", "top_k": 0}, 422, "invalid_value", "top_k", "top_k"),
    ],
)  # fmt: skip
def test_refusals_say_what_and_where(client, body, status, code, param, said):
    error = refusal(client.post("/v1/classify", json={"texts": ["a"]} | body), status)
    assert (error["code"], error["param"]) == (code, param)
    assert said in error["message"]


def test_limits_hold_for_them_too(loaded, with_sets):
    limits = LIMITS.model_copy(update={"max_label_tokens": 3 * (len(NAMES) + 1)})
    app = make_app(Ingress({"fitted": LocalPort(make_engine(with_sets))}, Guard([]), limits))
    with TestClient(app, client=("127.0.0.1", 1), base_url="http://localhost") as client:
        assert len(classify(client, texts=["a"] * 3, return_scores=True)) == 3
        assert len(classify(client, texts=["a"] * 9)) == 9
        body = {"label_set": "tickets", "texts": ["a"] * 4, "return_scores": True}
        error = refusal(client.post("/v1/classify", json=body), 413)
        assert error["param"] == "max_label_tokens"
        error = refusal(
            client.post("/v1/classify", json={"label_set": "tickets", "texts": ["a"] * 21}), 413
        )
        assert error["param"] == "max_texts"


def test_they_are_listed_and_show_their_report(client, loaded, tickets):
    data = client.get("/v1/label_sets").json()["data"]
    labels = AdaptedLabels.load(tickets)
    assert data[0] == {
        "object": "label_set", "id": "tickets", "labels": NAMES, "fingerprint": labels.id,
        "rows": 800, "trust": "default", "temperature": 0.7, "versions": {"sce": "0.1.0"},
        "embedder": loaded.predictor.embedder.fingerprint.id, "models": ["fitted", "twin"],
        "report_page": True,
    }  # fmt: skip
    assert [one["id"] for one in data] == ["tickets", "bare"]
    assert not data[1]["report_page"]
    one = client.get("/v1/label_sets/tickets").json()
    assert one.pop("report") == labels.report
    assert one == data[0]
    page = client.get("/v1/label_sets/tickets/report")
    assert page.text == PAGE
    assert page.headers["content-type"].startswith("text/html")
    assert REPORT_HEADERS.items() <= {name.title(): v for name, v in page.headers.items()}.items()
    error = refusal(client.get("/v1/label_sets/bare/report"), 404)
    assert error["code"] == "report_not_found"
    for path in ("no", "no/report"):
        error = refusal(client.get(f"/v1/label_sets/{path}"), 404)
        assert error["code"] == "label_set_not_found"
    infos = client.get("/info").json()["models"]
    assert [sorted(info.get("label_sets", {})) for info in infos] == [
        [], ["bare", "tickets"], ["bare", "tickets"],
    ]  # fmt: skip


def test_a_token_guards_them(with_sets):
    port = LocalPort(make_engine(with_sets))
    app = make_app(Ingress({"m": port}, Guard([Guard.digest("a" * 20)]), LIMITS))
    with TestClient(app) as client:
        for path in ("", "/tickets", "/tickets/report"):
            assert refusal(client.get(f"/v1/label_sets{path}"), 401)["code"] == "token_missing"
            headers = {"Authorization": f"Bearer {'a' * 20}"}
            assert client.get(f"/v1/label_sets{path}", headers=headers).status_code == 200


def test_one_that_was_taken_away_a_moment_ago(loaded, with_sets):
    port = LocalPort(make_engine(with_sets))
    app = make_app(Ingress({"m": port}, Guard([]), LIMITS))
    with TestClient(app, client=("127.0.0.1", 1), base_url="http://localhost") as client:
        classify(client, texts="a")
        port._engine.model = loaded
        response = client.post("/v1/classify", json={"texts": "a", "label_set": "tickets"})
        assert refusal(response, 404)["code"] == "label_set_not_found"


@pytest.fixture(scope="module")
def other(models, tmp_path_factory) -> Path:
    """A model that reads another embedder's vectors."""
    home = tmp_path_factory.mktemp("other")
    build_sentence_transformer(home / "embedder", pooling="cls")
    embedder = EmbedderConfig(kind="sentence_transformers", model=str(home / "embedder"))
    fingerprint = embedder_fingerprint(embedder)
    config = ModelConfig(encoder=str(models / "roberta"), adaptor_init="normal")
    build_model(config, fingerprint.to_dict(), 0.0, seed=0).model.save_pretrained(home / "sce")
    save_label_set(home / "labels", fingerprint, ["x", "y"])
    return home


def test_a_set_goes_to_the_models_of_its_embedder(models, other, tickets):
    two = {"one": settings_of(models), "another": settings_of(models, "other")}
    fits = {"one": {"tickets": tickets}, "another": {"tickets": tickets}}
    assert match_label_sets(two, {"tickets": tickets}) == fits
    third = settings_of(other)
    sets = {"tickets": tickets, "cls": str(other / "labels")}
    matched = match_label_sets(two | {"third": third}, sets)
    assert matched == fits | {"third": {"cls": str(other / "labels")}}
    assert match_label_sets(two, {}) == {"one": {}, "another": {}}


def test_a_set_that_fits_no_model_is_refused_with_both_embedders(models, other, tickets):
    with pytest.raises(ConfigError, match=r"label_sets\.tickets") as refused:
        match_label_sets({"third": settings_of(other)}, {"tickets": tickets})
    labels = AdaptedLabels.load(tickets)
    theirs = embedder_fingerprint(settings_of(other).embedder)
    assert labels.embedder["weights_sha256"]
    assert f"third reads {theirs}" in str(refused.value)
    assert str(replace(theirs, **labels.embedder)) in str(refused.value)
    config = ServeConfig(models={"third": settings_of(other)}, label_sets={"tickets": tickets})
    with pytest.raises(ConfigError, match="was fitted to vectors of the embedder"):
        build(config)


@pytest.mark.parametrize("damage", ["missing", "cut", "no report"])
def test_a_damaged_set_is_refused_at_the_start(models, loaded, tmp_path, damage):
    folder = tmp_path / "set"
    if damage != "missing":
        save_label_set(folder, loaded.predictor.embedder.fingerprint, NAMES)
        facts = json.loads((folder / FACTS_FILE).read_text())
        facts.pop("report")
        text = json.dumps(facts) if damage == "no report" else (folder / FACTS_FILE).read_text()[:9]
        (folder / FACTS_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"label_sets\.mine: .*set: (no|these) adapted labels"):
        match_label_sets({"m": settings_of(models)}, {"mine": str(folder)})


def test_the_builder_gives_replicas_their_sets(models, tickets, monkeypatch):
    place = Path(tickets)
    monkeypatch.chdir(place.parent)
    config = ServeConfig(models={"one": settings_of(models)}, label_sets={"tickets": place.name})
    found = deployments(config)
    assert found["model-one"].user_config["label_sets"] == {"tickets": tickets}
    assert "label_sets" not in found["gateway"].user_config["models"]["one"]


def test_the_setting_on_the_command_line():
    read = load_config(ServeConfig, ["--label-sets", "tickets=runs/a", "--port", "1"], "x", "")
    assert read.label_sets == {"tickets": "runs/a"}
    with pytest.raises(ConfigError, match="label_sets"):
        load_config(ServeConfig, ["--label-sets", "a/b=runs/a"], "x", "")


def test_others_load_while_the_model_answers(models, loaded, tickets, bare, tmp_path, monkeypatch):
    monkeypatch.setattr(serve.model, "ModelMetrics", NoMetrics)
    loads: list[str] = []
    load = serve.model.load_model
    monkeypatch.setattr(
        serve.model, "load_model", lambda *given: loads.append(given[0]) or load(*given)
    )
    config = settings_of(models).model_dump(mode="json", exclude={"scaling"})
    other_config = settings_of(models, "other").model_dump(mode="json", exclude={"scaling"})
    fingerprint = loaded.predictor.embedder.fingerprint
    newer = save_label_set(tmp_path / "newer", fingerprint, NAMES, 5)
    request = ModelRequest(TEXTS, "tickets", Scoring(1, True))

    async def change():
        replica = ModelReplica("tiny")
        await replica.reconfigure(config | {"label_sets": {"tickets": tickets}})
        first = await replica.answer(request)
        await replica.reconfigure(config | {"label_sets": {"tickets": newer, "bare": bare}})
        during = [asyncio.create_task(replica.answer(request)) for _ in range(20)]
        info = await swapped(replica)
        await asyncio.gather(*during)
        second = await replica.answer(request)
        assert [one["id"] for one in await replica.label_sets()] == ["tickets", "bare"]
        assert await replica.report_page("tickets") is None
        await replica.reconfigure(config | {"label_sets": {"tickets": str(tmp_path / "nowhere")}})
        failed = await swapped(replica)
        third = await replica.answer(request)
        await replica.reconfigure(other_config | {"label_sets": {"tickets": tickets}})
        healed = await swapped(replica)
        fourth = await replica.answer(request)
        with pytest.raises(NoSuchLabelSet):
            await replica.label_set("bare")
        return [first, second, third, fourth], info, failed, healed

    answers, info, failed, healed = run(change())
    scores = [one.answers.scores_M.tolist() for one in answers]
    assert scores[0] == scores[3] != scores[1] == scores[2]
    assert loads == ["tiny", "tiny"], "the weights were loaded anew for the label sets"
    assert info["error"] is None
    assert set(info["label_sets"]) == {"tickets", "bare"}
    assert "label_sets.tickets" in failed["error"]
    assert failed["label_sets"] == info["label_sets"]
    assert healed["error"] is None
    assert set(healed["label_sets"]) == {"tickets"}
    assert healed["model_fingerprint"] != info["model_fingerprint"]
