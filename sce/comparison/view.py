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

from sce.comparison.runs import search_filter

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "methods"
TAG = f"mlflow.sharedViewState.{KEY}"
BARS = {
    "compare/{group}/accuracy": "Accuracy, {group} label sets",
    "compare/{group}/macro_f1": "Macro-F1, {group} label sets",
    "compare/{group}/nll": "NLL, {group} label sets",
    "compare/{group}/ece": "ECE, {group} label sets",
    "compare/{group}/flip_rate": "Share of answers that change with the labels' order, {group}",
}
"""Metric -> title, for each group of label sets."""
COST_BARS = {
    "compare/texts_per_second": "Texts a second",
    "compare/peak_memory_mb": "Peak memory, MB",
    "compare/flops_per_text": "Operations a text",
    "compare/train_flops": "Operations of the training",
    "compare/epoch_seconds": "Seconds an epoch",
}
SCATTERS = (
    ("compare/train_flops", "compare/{group}/accuracy"),
    ("compare/flops_per_text", "compare/{group}/accuracy"),
)
"""Metrics on the x and y axes."""


def share_view(
    client: MlflowClient, experiment_id: str, groups: Iterable[str], measured_on: str
) -> str:
    """Write the view into the experiment.

    Args:
        groups: of label sets: "seen", "unseen", "own".
        measured_on: as of `read_methods`.

    Returns:
        The view's address, to be put behind that of the MLflow server.
    """
    text = json.dumps(_state(list(groups), measured_on), separators=(",", ":"))
    packed = "deflate;" + base64.b64encode(zlib.compress(text.encode())).decode()
    client.set_experiment_tag(experiment_id, TAG, packed)
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&compareRunsMode=CHART"


def _state(groups: list[str], measured_on: str) -> dict[str, Any]:
    charts: list[dict[str, Any]] = []
    for group in groups:
        for metric, title in BARS.items():
            charts.append(_bar(metric.format(group=group), title.format(group=group), "quality"))
    charts += [_bar(metric, title, "cost") for metric, title in COST_BARS.items()]
    for group in groups:
        for x, y in SCATTERS:
            charts.append(_scatter(x, y.format(group=group)))
    names = {"quality": "Quality", "cost": "Cost", "both": "Accuracy against compute"}
    return {
        "searchFilter": search_filter(measured_on),
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


def _bar(metric: str, title: str, section: str) -> dict[str, Any]:
    return _card("BAR", metric, section) | {"metricKey": metric, "displayName": title}


def _scatter(x: str, y: str) -> dict[str, Any]:
    return _card("SCATTER", f"{x}:{y}", "both") | {
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": y, "type": "METRIC"},
    }


def _card(kind: str, uuid: str, section: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": uuid,
        "metricSectionId": section,
        "runsCountToCompare": 20,
        "deleted": False,
        "isGenerated": False,
    }
