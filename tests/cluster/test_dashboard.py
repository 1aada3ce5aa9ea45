"""Prometheus' and Grafana's files: whole, and naming only what is measured."""

import json
import re

import pytest
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from serve import metrics
from tests.cluster.manifests import CLUSTER, read

MONITORING = CLUSTER / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "sce.json").read_text())


def panels() -> dict[str, list[dict]]:
    """Panels by the row that they stand in."""
    found: dict[str, list[dict]] = {}
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            row = found.setdefault(panel["title"], [])
        else:
            row.append(panel)
    return found


def queries(row: str | None = None) -> list[str]:
    return [
        target["expr"]
        for title, members in panels().items()
        for panel in members
        for target in panel["targets"]
        if row in (None, title)
    ]


def test_rows_cover_serve_data_and_train():
    assert list(panels()) == [
        "Endpoint: requests", "Endpoint: models", "Ray Serve",
        "Ray Data: embedding and classification", "Ray Train", "Cluster", "GPU",
    ]  # fmt: skip
    assert all(panels().values())


def test_panels_do_not_overlap_and_have_numbers_of_their_own():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_source_of_data_is_the_one_that_is_provisioned():
    (source,) = read(MONITORING / "grafana" / "datasources.yaml")[0]["datasources"]
    used = {panel["datasource"]["uid"] for row in panels().values() for panel in row}
    assert used == {source["uid"]}
    assert source["url"] == "http://127.0.0.1:9090"
    (provider,) = read(MONITORING / "grafana" / "dashboards.yaml")[0]["providers"]
    compose = read(CLUSTER / "compose.yaml")[0]["services"]["grafana"]["volumes"]
    assert f"./monitoring/grafana/sce.json:{provider['options']['path']}/sce.json:ro" in compose


def test_a_rate_reaches_over_several_scrapes():
    (source,) = read(MONITORING / "grafana" / "datasources.yaml")[0]["datasources"]
    for name in ("prometheus.yml", "prometheus-kubernetes.yml"):
        config = read(MONITORING / name)[0]
        assert config["global"]["scrape_interval"] == source["jsonData"]["timeInterval"]
    for query in queries():
        assert re.findall(r"\[(.*?)\]", query) == ["$__rate_interval"] * query.count("["), query


def test_every_metric_of_ours_is_counted_by_the_endpoint():
    source = (CLUSTER.parent / "serve" / "metrics.py").read_text()
    ours = set(re.findall(r'"(sce_\w+)"', source))
    ours |= {f"sce_{name}" for name in re.findall(r'_(?:counter|histogram)\(\s*"(\w+)"', source)}
    assert metrics.PREFIX == "ray_sce_"
    shown = {
        re.sub(r"_(total|bucket|sum|count)$", "", name)
        for query in queries()
        for name in re.findall(r"ray_(sce_\w+)", query)
    }
    assert shown <= ours, shown - ours
    assert ours - shown <= {"sce_retries"}, "measured, and shown nowhere"


def test_gpus_are_measured_by_ray_under_these_names():
    """No GPU here: at least the names are Ray's, and the row has nothing else."""
    for query in queries("GPU"):
        (name,) = re.findall(r"ray_(\w+)", query)
        assert name in METRICS_GAUGES, name
    others = [query for row in panels() if row != "GPU" for query in queries(row)]
    assert not [query for query in others if re.search(r"_gpus?_|_gram_", query)]


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_both_homes_call_the_job_the_same(name):
    (job,) = read(MONITORING / name)[0]["scrape_configs"]
    assert job["job_name"] == "ray"
