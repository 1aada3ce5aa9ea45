"""Variants of an experiment, each trained with several seeds, in one table: `jobs/ablate.py`."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from sce.config import build_config
from sce.errors import ConfigError
from sce.evaluation.runs import MethodRuns
from sce.evaluation.summaries import named_results
from sce.evaluation.tables import Cell, Table, bounds, number, percent
from sce.storage import to_place, write_text
from sce.storage.recipes import merged_settings
from sce.workflows.compare import read_methods
from sce.workflows.experiment import Ablation, CompareConfig, Experiment
from sce.workflows.mlflow_store import reading
from sce.workflows.tracking import Tracker, tracking_uri
from sce.workflows.train import CONFIG_FILE, saved_settings, train
from sce.workflows.training_run import TrainingRun

TABLE_FILE = "ablation"

log = logging.getLogger("sce")


def ablate(ablation: Ablation) -> dict[str, Any]:
    """Train what is not trained yet, and make the table.

    Raises:
        InputError: wrong settings of a variant, before any is trained; or as `train`.
    """
    started = time.perf_counter()
    experiments = resolve(ablation)
    uri = tracking_uri(ablation.tracking)
    if not ablation.tracking.enabled:
        raise ConfigError("tracking.enabled: the table is read from MLflow.")
    trained = 0
    for place, experiment in enumerate(experiments):
        said = f"{place + 1} of {len(experiments)}: {experiment.name}, seed {experiment.seed}"
        if _is_done(experiment):
            log.info("%s: trained before", said)
            continue
        log.info("%s", said)
        train(experiment)
        trained += 1
    names = list(dict.fromkeys(one.name for one in experiments))
    config = CompareConfig(methods=names, measured_on="test", tracking=ablation.tracking)
    with reading(uri) as client:
        _, methods = read_methods(client, config)
    wanted = {(one.name, one.seed) for one in experiments}
    runs = [[r for r in m.runs if (m.name, r.described["seed"]) in wanted] for m in methods]
    table = ablation_table([MethodRuns(of_one) for of_one in runs if of_one])
    home = ablation.home
    write_text(home / f"{TABLE_FILE}.md", f"{table.to_markdown()}\n\n{table.caption}\n")
    write_text(home / f"{TABLE_FILE}.csv", table.to_csv())
    Console(stderr=True).print(table)
    tags = {"job": "ablate", "method": ablation.name, "seed": "0"}
    with Tracker.open(ablation.tracking, "evaluation", None, ablation.name, tags) as tracker:
        for ending in ("md", "csv"):
            tracker.log_artifact(home / f"{TABLE_FILE}.{ending}")
    return {
        "variants": names,
        "runs": len(experiments),
        "trained": trained,
        "table": str(home / f"{TABLE_FILE}.md"),
        "mlflow_run_id": tracker.run_id,
        "seconds": round(time.perf_counter() - started, 1),
    }


def resolve(ablation: Ablation) -> list[Experiment]:
    """The experiments of an ablation, in the order of its variants and seeds.

    Raises:
        ConfigError: a variant's settings are wrong, or name what the ablation gives each itself.
    """
    own = {"seeds", "variants", "resume", "restart"}
    base = ablation.model_dump(mode="json", exclude=own)
    found = []
    for name, changes in (ablation.variants or {"": {}}).items():
        where = f"variants.{name}"
        if taken := sorted({"name", "run_dir", "seed", *own} - {"seeds"} & changes.keys()):
            raise ConfigError(f"{where}.{taken[0]}: not a setting of a variant.")
        seeds = changes.get("seeds", ablation.seeds)
        if not isinstance(seeds, list) or not seeds or len({*map(str, seeds)}) < len(seeds):
            raise ConfigError(f"{where}.seeds: {seeds!r} is no list of different seeds.")
        settings = merged_settings(base, {k: v for k, v in changes.items() if k != "seeds"})
        for seed in seeds:
            folder = "-".join(["-".join(name.split()), f"seed{seed}"] if name else [f"seed{seed}"])
            given = {
                "name": f"{ablation.name} {name}".strip(),
                "seed": seed,
                "run_dir": str(to_place(ablation.run_dir) / folder),
                "shared_dir": str(settings["shared_dir"] or ablation.run_dir),
                "umask": ablation.umask,
                "restart": True,
            }
            found.append(build_config(Experiment, settings | given, where))
    return found


def _is_done(experiment: Experiment) -> bool:
    """Whether it was trained and measured with the settings that it has now."""
    file = experiment.home / CONFIG_FILE
    if not file.is_file() or not TrainingRun.is_finished(experiment.checkpoints_dir):
        return False
    return bool(yaml.safe_load(file.read_text(encoding="utf-8")) == saved_settings(experiment))


def ablation_table(methods: Sequence[MethodRuns]) -> Table:
    """A row for each variant; the first is cosine similarity beside the first of them."""
    datasets = list(dict.fromkeys(dataset for m in methods for dataset in m.datasets))
    rows: list[list[Cell]] = [_cosine_row(methods[0], datasets)]
    for m in methods:
        row: list[Cell] = [m.name, str(len(m.seeds))]
        row += [_accuracy(m, dataset) for dataset in datasets]
        training = [run.described["training"] for run in m.runs]
        row += [number(float(np.mean([one["seconds"] for one in training])), 0)]
        row += ["/".join(f"{one['epochs']}" for one in training)]
        rows.append(row)
    columns = ["variant", "seeds", *(d.removesuffix(" (unseen)") for d in datasets), "s", "epochs"]
    return Table(
        columns,
        rows,
        "Variants",
        "Percent right. (low to high): the range over the seeds; [low, high]: of one seed, 95 % "
        "over rows. s: seconds of a training, without measuring; epochs: trained.",
    )


def _cosine_row(m: MethodRuns, datasets: Sequence[str]) -> list[Cell]:
    found: dict[str, list[float]] = {}
    for result in named_results(m.runs[0].results):
        if "cosine" in result:
            dataset = m.sets[result["name"]].dataset
            found.setdefault(dataset, []).append(result["cosine"]["accuracy"])
    means = [percent(float(np.mean(found[d]))) if d in found else "" for d in datasets]
    return ["cosine similarity", "", *means, "", ""]


def _accuracy(m: MethodRuns, dataset: str) -> str:
    found = m.accuracy(dataset)
    if found is None:
        return ""
    if len(m.seeds) == 1:
        return percent(found.value) + bounds(found.low, found.high)
    by_seed = [MethodRuns([run]).accuracy(dataset) for run in m.runs]
    values = [one.value for one in by_seed if one is not None]
    return f"{percent(found.value)} ({percent(min(values))} to {percent(max(values))})"
