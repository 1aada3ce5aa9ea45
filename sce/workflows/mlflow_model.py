"""A trained model as one that MLflow loads, serves and deploys: the flavour `pyfunc`.

    mlflow.pyfunc.load_model("models:/m-...").predict(
        pandas.DataFrame({"text": ["The parcel never came."]}),
        params={"labels": ["late delivery", "billing"], "threshold": 0.4},
    )

`mlflow models serve -m models:/m-... --env-manager local` answers the same at /invocations. Where
it is loaded this package must be installed.

Parameters are those of `Predictor.predict`. MLflow's are numbers, texts and lists of these: a tree
of labels, or thresholds by label, are given as JSON text.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sce.bulk.request import identify_model
from sce.client.reasons import from_why, label_pairs
from sce.config import VERSION
from sce.embedding.settings import EmbedderConfig
from sce.errors import InputError
from sce.model.answers import Prediction
from sce.model.options import AnswerOptions
from sce.storage import Place, absolute_model, fetch
from sce.storage.documents import unique_keys

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.models import Model, ModelSignature

    from sce.predictor import Predictor
    from sce.workflows.tracking import Tracker

DATA = "data"
WEIGHTS = "weights"
"""Folder of the model's files, in `DATA` of MLflow's model."""
CONTENT_TAG = "sce.weights"
"""Of a logged model: a hash of its weights and configuration."""
EXAMPLE = (
    [{"text": "The parcel never came."}, {"text": "I was charged twice."}],
    {"labels": ["late delivery", "billing", "praise"], "threshold": 0.0, "return_scores": False},
)
"""Rows and parameters."""


def begin_model(
    tracker: Tracker, name: str, folder: Place, params: Mapping[str, Any]
) -> str | None:
    """Tell MLflow of a model that the run has made, so that figures can be recorded of it. Returns
    its id; None without a run."""

    def send(client: MlflowClient, run_id: str) -> str:
        from mlflow.entities import LoggedModelOutput

        model = client.create_logged_model(
            str(tracker.experiment_id),
            name=re.sub(r"[/:.%\"'\s]+", "-", name),
            source_run_id=run_id,
            tags={CONTENT_TAG: identify_model(str(folder))[1]},
            params={key: str(value) for key, value in params.items()},
            model_type="soft-contextualized-encoder",
        )
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return model.model_id

    found: str | None = tracker.send("log the model", send)
    return found


def complete_model(
    tracker: Tracker, model_id: str | None, folder: Place, embedder: EmbedderConfig
) -> None:
    """Copy the model's files to MLflow, once, with what it loads and serves them by."""
    if model_id is None:
        return

    def send(client: MlflowClient, run_id: str) -> None:
        from mlflow.models import Model

        local = fetch(folder)
        with tempfile.TemporaryDirectory() as scratch:
            home = Path(scratch) / "model"
            _write_flavour(home, Model(run_id=run_id, model_id=model_id), embedder, local)
            client.log_model_artifacts(model_id, str(home))
        # Straight from where they lie: they may be large.
        client.log_model_artifacts(model_id, str(local), f"{DATA}/{WEIGHTS}")
        client.finalize_logged_model(model_id, "READY")

    tracker.send("log the model's files", send)


def find_model(tracker: Tracker, experiment: str, folder: Place) -> str | None:
    """The id of the logged model with the weights that lie in `folder`."""

    def send(client: MlflowClient, run_id: str) -> str | None:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        wanted = f"tags.`{CONTENT_TAG}` = '{identify_model(str(folder))[1]}'"
        models = client.search_logged_models([found.experiment_id], wanted, max_results=1)
        return models[0].model_id if models else None

    found: str | None = tracker.send("look the model up", send)
    return found


def _write_flavour(home: Path, model: Model, embedder: EmbedderConfig, weights: Path) -> None:
    """All of MLflow's model but the files in `weights`."""
    import pandas as pd
    from mlflow import pyfunc

    where = {}
    if embedder.model is not None:  # its fingerprint does not say where a folder lies
        kept = embedder.model_copy(update={"model": absolute_model(embedder.model)})
        where = {"embedder": kept.model_dump(mode="json", exclude_defaults=True)}
    rows, params = EXAMPLE
    with tempfile.TemporaryDirectory() as scratch:
        empty = Path(scratch) / WEIGHTS
        empty.mkdir()
        pyfunc.save_model(
            str(home),
            loader_module=__name__,
            data_path=str(empty),
            mlflow_model=model,
            signature=signature(),
            input_example=(pd.DataFrame(rows), params),
            pip_requirements=[f"soft-contextualized-encoder=={VERSION}"],
            model_config=where or None,
        )
    model.model_size_bytes = sum(file.stat().st_size for file in weights.iterdir())
    model.save(str(home / "MLmodel"))


def signature() -> ModelSignature:
    """A column `text`, and where rows have labels of their own `labels`, in any form that
    `LabelSet.parse` or `LabelTree.parse` accepts; as parameters the labels of all others, and what
    `Predictor.predict` takes."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "text"),
        ColSpec(AnyType(), "labels", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "label", required=False),
        ColSpec(DataType.double, "score", required=False),
        ColSpec(AnyType(), "scores", required=False),
        ColSpec(DataType.boolean, "truncated"),
        ColSpec(AnyType(), "where", required=False),
        ColSpec(DataType.string, "error", required=False),
        *(ColSpec(AnyType(), name, required=False) for name in ("labels", "top", "path", "why")),
        ColSpec(DataType.double, "none_score", required=False),
    ]
    params = [
        ParamSpec("labels", DataType.string, [], (-1,)),
        ParamSpec("tree", DataType.string, ""),
        ParamSpec("threshold", DataType.double, None),
        ParamSpec("thresholds", DataType.string, ""),
        ParamSpec("top_k", DataType.long, None),
        ParamSpec("return_scores", DataType.boolean, False),
        ParamSpec("long_text", DataType.string, "truncate"),
        ParamSpec("pooling", DataType.string, None),
        ParamSpec("mode", DataType.string, "single"),
        ParamSpec("at_least", DataType.long, 0),
        ParamSpec("at_most", DataType.long, None),
        ParamSpec("contrast_labels", DataType.string, [], (-1,)),
        ParamSpec("none_of_these", DataType.boolean, False),
        ParamSpec("none_share", DataType.double, None),
        ParamSpec("none_threshold", DataType.double, None),
        ParamSpec("coverage_cut", DataType.double, None),
        ParamSpec("explain", DataType.boolean, False),
    ]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(params))


class ServedModel:
    """What MLflow's `pyfunc` calls."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """A row of `label, score, truncated, error` for each of the input, and the other fields of
        an answer as far as they are asked for, in the form that they have over HTTP.

        Raises:
            MlflowException: a bad request, for what `Predictor.predict` refuses.
        """
        import pandas as pd
        from mlflow.exceptions import MlflowException

        params = params or {}
        try:
            options = _options(params)
            found = self._answers(model_input, params, options)
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        asked = {
            "scores": options.return_scores,
            "where": options.long_text == "chunk",
            "labels": options.several,
            "top": options.top_k is not None,
            "path": any(one.path is not None for one in found),
            "none_score": options.none_of_these,
            "why": options.explain,
        }
        columns = ["label", "score", *(name for name, is_asked in asked.items() if is_asked)]
        columns += ["truncated", "error"]
        rows = [{name: _cell(one, name) for name in columns} for one in found]
        return pd.DataFrame(rows, columns=columns, dtype=object)

    def _answers(
        self, rows: pd.DataFrame, params: Mapping[str, Any], options: AnswerOptions
    ) -> list[Prediction]:
        texts, given = rows["text"].tolist(), _labels(params)
        own = rows["labels"].tolist() if "labels" in rows else [None] * len(texts)
        asked: list[Any] = [given if _is_missing(one) else one for one in own]
        if not all(len(labels) for labels in asked):
            raise InputError(
                "labels: give them as a parameter, {'params': {'labels': ['one', 'two']}}, or to "
                "each row in a column `labels`."
            )
        # Rows of the same labels are answered together.
        together: dict[str, list[int]] = {}
        for i, labels in enumerate(asked):
            together.setdefault(json.dumps(labels, default=list), []).append(i)
        found: list[Any] = [None] * len(texts)
        for places in together.values():
            answers = self._predictor.predict(
                [texts[i] for i in places], asked[places[0]], **options.given()
            )
            for i, answer in zip(places, answers, strict=True):
                found[i] = answer
        return found


def _labels(params: Mapping[str, Any]) -> Any:
    if not params.get("tree"):
        return list(params.get("labels", []))
    if len(params.get("labels", [])):
        raise InputError("give either labels or tree.")
    return _json(params, "tree")


def _options(params: Mapping[str, Any]) -> AnswerOptions:
    """What the parameters ask of an answer. Raises `InputError`: it cannot be had."""
    names = {one.name for one in fields(AnswerOptions)} & set(params)
    found = {name: params[name] for name in names if params[name] is not None}
    found |= {"contrast_labels": list(found.get("contrast_labels", ()))}
    if params.get("thresholds"):
        if "threshold" in found:
            raise InputError("give either threshold or thresholds.")
        found["threshold"] = _json(params, "thresholds")
        if not isinstance(found["threshold"], dict):
            raise InputError("thresholds: an object {label: probability} is needed.")
    return AnswerOptions(**found)


def _json(params: Mapping[str, Any], name: str) -> Any:
    try:
        return json.loads(params[name], object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: it is no JSON: {error}") from None


def _cell(one: Prediction, name: str) -> Any:
    value = getattr(one, name)
    if name in ("labels", "top", "path"):
        return label_pairs(value)
    return from_why(value) if name == "why" and value is not None else value


def _is_missing(labels: Any) -> bool:
    return labels is None or isinstance(labels, float)  # NaN, in a column of pandas


def _load_pyfunc(data: str, model_config: Mapping[str, Any] | None = None) -> ServedModel:
    """Called by MLflow. The embedder of `model_config` is used where its checkpoint is there, else
    the one that the model's fingerprint names."""
    from sce.predictor import Predictor

    embedder, given = None, (model_config or {}).get("embedder")
    if given:
        named = EmbedderConfig.model_validate(given)
        is_gone = Path(named.model_name).is_absolute() and not Path(named.model_name).exists()
        embedder = None if is_gone else named
    return ServedModel(Predictor.from_pretrained(Path(data), embedder))
