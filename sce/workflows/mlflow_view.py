"""The comparison in the MLflow UI: its filter and charts, as the UI's own shared view.

The UI keeps a shared view in a tag of the experiment and opens it by the tag's key in the address.
The form of that state is MLflow's, read in version 3.17; a UI that knows it no more shows the runs
without these charts.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sce.workflows.mlflow_store import MODE

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "methods"
TAG = f"mlflow.sharedViewState.{KEY}"
QUALITY = ("accuracy", "macro_f1", "nll", "ece", "flip_rate")
COSTS = ("texts_per_second", "peak_memory_mb", "flops_per_text", "train_flops", "epoch_seconds")


def share_view(
    client: MlflowClient, experiment_id: str, groups: Iterable[str], search_filter: str
) -> str:
    """Write the view of the runs that `search_filter` finds into the experiment, with charts of
    these groups of label sets ("seen", "unseen", "own"). Returns what stands in its address behind
    the MLflow server."""
    text = json.dumps(_state(list(groups), search_filter), separators=(",", ":"))
    packed = "deflate;" + base64.b64encode(zlib.compress(text.encode())).decode()
    client.set_experiment_tag(experiment_id, TAG, packed)
    address = f"/#/experiments/{experiment_id}/runs"
    return f"{address}?viewStateShareKey={KEY}&compareRunsMode=CHART&{MODE}"


def _state(groups: list[str], search_filter: str) -> dict[str, Any]:
    charts = [_bar(f"{name}_by_name/{group}", "quality") for group in groups for name in QUALITY]
    charts += [_bar(name, "cost") for name in COSTS]
    for group in groups:
        charts += [
            _scatter(x, f"accuracy_by_name/{group}") for x in ("train_flops", "flops_per_text")
        ]
    names = {"quality": "Quality", "cost": "Cost", "both": "Accuracy against compute"}
    return {
        "searchFilter": search_filter,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": uuid, "name": name, "display": True, "isReordered": True, "deleted": False,
             "isGenerated": False}
            for uuid, name in names.items()
        ],
    }  # fmt: skip


def _bar(metric: str, section: str) -> dict[str, Any]:
    return _card("BAR", metric, section) | {"metricKey": metric}


def _scatter(x: str, y: str) -> dict[str, Any]:
    card = _card("SCATTER", f"{x}:{y}", "both")
    axes = {"xaxis": x, "yaxis": y}
    return card | {axis: {"key": metric, "type": "METRIC"} for axis, metric in axes.items()}


def _card(kind: str, uuid: str, section: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": uuid,
        "metricSectionId": section,
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
    }
