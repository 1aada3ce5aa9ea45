"""A model's replica without Ray: loading, swapping weights, budgets, health; and the builder."""

import asyncio
from unittest.mock import MagicMock

import pytest
from httpx2 import ASGITransport, AsyncClient
from pydantic import SecretStr, ValidationError
from ray.serve._private import constants

import serve.gateway
import serve.model
from sce.distributed.resources import ClusterSize
from sce.errors import ConfigError, InputError
from sce.labels import LabelSet
from sce.model.options import Scoring
from serve import app, ray_settings
from serve.app import build
from serve.gateway import Gateway
from serve.model import ModelReplica
from serve.settings import BatchSettings, ServeConfig, default_name
from serve.work import ModelRequest
from tests.serve.conftest import run, settings_of

REQUEST = ModelRequest(["a text", "another"], LabelSet.parse(["a", "b", "c"]), Scoring(3, True))


class NoMetrics:
    def __init__(self, name: str) -> None:
        pass

    def batch(self, report) -> None:
        pass

    def answer(self, found) -> None:
        pass


@pytest.fixture(autouse=True)
def no_metrics(monkeypatch):
    monkeypatch.setattr(serve.model, "ModelMetrics", NoMetrics)


def config_of(models, name="sce", **more):
    return settings_of(models, name, **more).model_dump(mode="json", exclude={"scaling"})


async def swapped(replica: ModelReplica) -> dict:
    while (info := await replica.info())["loading"]:
        await asyncio.sleep(0.01)
    return info


def test_other_weights_load_while_the_model_answers(models):
    async def swap():
        replica = ModelReplica("tiny")
        await replica.reconfigure(config_of(models))
        before, info = await replica.answer(REQUEST), await replica.info()
        await replica.reconfigure(config_of(models, "other"))
        during = [asyncio.create_task(replica.answer(REQUEST)) for _ in range(20)]
        later = await swapped(replica)
        await asyncio.gather(*during)
        after = await replica.answer(REQUEST)
        return before, info, after, later

    before, info, after, later = run(swap())
    assert info["model_fingerprint"] != later["model_fingerprint"]
    assert later["error"] is None
    assert before.answers.scores_M.tolist() != after.answers.scores_M.tolist()
    assert after.cached == 2  # the embedder is the same, so are its vectors


def test_weights_that_are_not_there_leave_the_model(models):
    async def swap():
        replica = ModelReplica("tiny")
        await replica.reconfigure(config_of(models))
        before = await replica.info()
        await replica.reconfigure(config_of(models) | {"path": "nowhere/at all"})
        failed = await swapped(replica)
        await replica.answer(REQUEST)
        await replica.reconfigure(config_of(models, "other"))
        return before, failed, await swapped(replica)

    before, failed, healed = run(swap())
    assert failed["model_fingerprint"] == before["model_fingerprint"]
    assert "nowhere" in failed["error"]
    assert healed["error"] is None
    assert healed["model_fingerprint"] != before["model_fingerprint"]


def test_the_first_model_must_be_there(models):
    with pytest.raises(InputError, match="nowhere"):
        run(ModelReplica("tiny").reconfigure(config_of(models) | {"path": str(models / "nowhere")}))


def test_a_replica_that_is_stuck_is_replaced(models, monkeypatch):
    async def stuck():
        replica = ModelReplica("tiny")
        await replica.reconfigure(config_of(models))
        await replica.check_health()
        monkeypatch.setattr(type(replica._engine), "working_seconds", 1e6)
        with pytest.raises(RuntimeError, match="batch takes more"):
            await replica.check_health()

    run(stuck())


def held_config(models, name="sce") -> dict:
    limits = {"limits": {"max_texts": 5}, "log_texts": False, "batches": {}, "models": {}}
    return limits | {"held": config_of(models, name)}


def test_a_gateway_that_holds_the_model_takes_other_weights_while_it_answers(models, monkeypatch):
    monkeypatch.setattr(serve.gateway, "GatewayMetrics", MagicMock)
    body = {"texts": ["a text", "another"], "labels": ["a", "b", "c"], "return_scores": True}

    async def swap():
        gateway = Gateway({}, [], held="tiny")
        await gateway.reconfigure(held_config(models))
        transport = ASGITransport(gateway.__serve_build_asgi_app__(), client=("127.0.0.1", 5000))
        async with AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def ask() -> dict:
                answer = await client.post("/v1/classify", json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()["data"]

            before = await ask()
            await gateway.reconfigure(held_config(models, "other"))
            during = [await ask() for _ in range(3)]
            await swapped(gateway._held)
            assert (await client.get("/health")).json() == {"status": "ok"}
            over = await client.post("/v1/classify", json=body | {"texts": ["x"] * 6})
            assert over.status_code == 413
            await gateway.check_health()
            monkeypatch.setattr(type(gateway._held._engine), "working_seconds", 1e6)
            with pytest.raises(RuntimeError, match="batch takes more"):
                await gateway.check_health()
            return before, during, await ask()

    before, during, after = run(swap())
    assert before != after
    assert all(one in (before, after) for one in during)


def deployments(config: ServeConfig) -> dict:
    """Of a cluster that is not there yet, whose room is not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.ray, "is_initialized", lambda: False)
        gateway = build(config)._bound_deployment
    found = {gateway.name: gateway}
    for handle in gateway.init_args[0].values():
        found[handle._bound_deployment.name] = handle._bound_deployment
    return found


def test_batches_need_a_ray_that_others_cannot_enter(models, monkeypatch):
    monkeypatch.setattr(app.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(app, "cluster_size", lambda: ClusterSize([{"CPU": 8}], {"CPU": 8}))
    monkeypatch.setattr(app, "shared_session", lambda: "/tmp/ray/session_1")
    roots = {"input_roots": ["/data/in"], "output_roots": ["/data/out"]}
    config = ServeConfig(models={"one": settings_of(models)}, tokens="x" * 20)
    assert "gateway" in deployments(config)
    shared = config.model_copy(update={"batches": BatchSettings(**roots)})
    with pytest.raises(ConfigError, match=r"can enter Ray's folder /tmp/ray/session_1"):
        build(shared)
    monkeypatch.setattr(app, "shared_session", lambda: None)
    assert "gateway" in deployments(shared)


def test_the_builder_makes_a_deployment_a_model(models):
    one = settings_of(models, threads=1).model_dump() | {"scaling": {"max_replicas": 3}}
    config = ServeConfig(models={"one": one, "two": settings_of(models, "other")}, tokens="x" * 20)
    found = deployments(config)
    assert list(found) == ["gateway", "model-one", "model-two"]
    assert found["model-one"]._deployment_config.autoscaling_config.max_replicas == 3
    assert found["model-two"]._deployment_config.autoscaling_config is None
    assert found["model-two"].num_replicas == 1
    assert "x" * 20 not in repr(found["gateway"].user_config)
    timeout = config.limits.body_timeout_seconds + config.limits.request_timeout_seconds
    assert all(d._deployment_config.graceful_shutdown_timeout_s > timeout for d in found.values())


def test_one_model_may_be_in_the_gateways_process(models):
    scaling = {"num_cpus": 2.0, "num_gpus": 0.5}
    model = settings_of(models, threads=1).model_dump() | {"scaling": scaling, "device": "auto"}
    config = ServeConfig(models={"one": model}, one_process=True)
    (gateway,) = deployments(config).values()
    assert gateway.init_args[3] == "one"
    assert gateway.user_config["held"]["path"] == str(models / "sce")
    assert gateway.ray_actor_options == {"num_cpus": 2.1, "num_gpus": 0.5}
    assert list(deployments(ServeConfig(models={"one": model}))) == ["gateway", "model-one"]


@pytest.mark.parametrize("more", [{"scaling": {"max_replicas": 2}}, {}])
def test_what_does_not_fit_one_process_is_not_put_there(models, more):
    names = {"one": settings_of(models).model_dump() | more}
    config = ServeConfig(models=names if more else {**names, "two": settings_of(models)})
    assert not config.fits_one_process
    with pytest.raises(ValidationError, match="needs one model, with one replica"):
        ServeConfig(**config.model_dump() | {"one_process": True})


def test_behind_rays_haproxy_tokens_are_required(models, monkeypatch):
    assert constants.__dict__.get(ray_settings.HAPROXY) is False
    monkeypatch.setenv(ray_settings.HAPROXY, "1")
    config = ServeConfig(models={"one": settings_of(models)})
    with pytest.raises(ConfigError, match=r"HA_PROXY=1: .* tokens are required"):
        build(config)
    assert "gateway" in deployments(config.model_copy(update={"tokens": SecretStr("x" * 20)}))


@pytest.mark.parametrize(
    ("path", "name"),
    [("runs/quickstart/model", "quickstart"), ("/models/week2/", "week2"), ("me/my-sce", "my-sce"),
     ("model", "model")],
)  # fmt: skip
def test_a_model_without_a_name_has_its_folders(path, name):
    assert default_name(path) == name
