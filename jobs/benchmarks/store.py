"""Measures the store path: what a new label set costs where the texts are embedded already.

`matrix`: the model on vectors beside a bare matrix product. `files`: files to files in one process
beside reading and writing them alone. `engine`: the job on Ray beside a bare loop, start-up apart.
`commands`: `jobs/classify.py` from command to last line, with its peaks of memory.

Vectors and weights are random: speed does not depend on them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jobs.benchmarks.inputs import label_names, write_model, write_store
from jobs.benchmarks.process_memory import WatchedJob, run_job_watched
from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import Figure, Figures, in_turn, seconds_of
from jobs.benchmarks.store_path import (
    COLUMNS,
    copy_alone,
    files_to_files,
    plan_store,
    random_adapted,
    share_of_matrix_rate,
)
from sce.adaptation.artefact import AdaptedLabels
from sce.bulk.corpus import Shard
from sce.bulk.counts import ErrorLimit
from sce.bulk.output import OutputRun
from sce.bulk.reading import read_shard
from sce.distributed.backends import Classification, LocalModel
from sce.distributed.resources import embed_actors
from sce.distributed.settings import ResourcesConfig
from sce.distributed.stage import ACTOR_CPUS, run_stage
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.labels import LabelSet
from sce.model.options import AnswerOptions
from sce.predictor import Predictor


class StoreBenchmark(Benchmark):
    """Settings of `benchmark.py store`."""

    parts: list[Literal["matrix", "files", "engine", "commands"]] = [
        "matrix", "files", "engine", "commands"
    ]  # fmt: skip
    model: str | None = None
    """A trained model; by default random weights of the default recipe."""
    label_counts: list[int] = [2, 10, 100, 1000]
    """Of SCE beside a matrix product."""
    adapted_counts: list[int] = [10, 100]
    """Of adapted labels, files to files."""
    seconds: float = Field(default=1.0, gt=0)
    """To answer vectors for, at a time."""
    engine_rows: int = Field(default=100_000, ge=1)
    """Vectors of the store for `engine` and `files`."""
    rows: int = Field(default=1_000_000, ge=10)
    """Vectors of the store for `commands`, with adapted labels."""
    sce_rows: int = Field(default=1_000_000, ge=1)
    """And with SCE."""
    labels: int = Field(default=10, ge=1)
    """Of `engine` and `commands`."""
    rounds: int = Field(default=3, ge=1)
    command_rounds: int = Field(default=1, ge=1)
    dtype: str = "auto"
    """Of the encoder."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Of `matrix` and `files`; the jobs take what `resources` say."""
    embedder: EmbedderConfig = EmbedderConfig()
    resources: ResourcesConfig = ResourcesConfig()


def benchmark_store(config: StoreBenchmark) -> Measured:
    """Every part that is asked for."""
    figures: Figures = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="store-") as scratch:
        home = Path(scratch)
        folder = config.model or write_model(home / "model", config.embedder)
        embedder = config.embedder.model_copy(update={"device": config.device})
        predictor = Predictor.from_pretrained(folder, embedder, config.device, config.dtype)
        fingerprint = predictor.embedder.fingerprint
        if "matrix" in config.parts:
            found, notes = share_of_matrix_rate(
                predictor, config.label_counts, config.seconds, config.rounds
            )
            figures |= found
        if {"files", "engine"} & {*config.parts}:
            write_store(home / "store", fingerprint, config.engine_rows)
        if "files" in config.parts:
            counts, rounds = config.adapted_counts, config.rounds
            figures |= files_to_files(home / "store", None, counts, rounds)
        if "engine" in config.parts:
            figures |= _engine(config, home, folder, predictor)
        if "commands" in config.parts:
            found, said = _commands(config, home, folder)
            figures, notes = figures | found, [*notes, said]
        kinds = arithmetic_of(embedder=predictor.embedder, encoder=predictor.model)
        device = predictor.model.query_adaptor.weight.device.type
    return Measured(figures, kinds, tuple(notes), {"embedder": str(fingerprint)}, device)


def _engine(config: StoreBenchmark, home: Path, folder: str, predictor: Predictor) -> Figures:
    """The job's own stage, from the first block to the last, beside a loop over the same files
    that writes nothing."""
    # By default Ray lets every other program go before its workers, which the loop does not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    plan = embed_actors(config.resources, default_cpus=ACTOR_CPUS)
    model = LocalModel.find(folder, config.embedder, config.dtype, exact=False)
    labels = LabelSet.parse(label_names(config.labels, 0))
    write_store(home / "few", predictor.embedder.fingerprint, 100)
    few, _ = plan_store(home / "few")
    shards, rows = plan_store(home / "store")
    stage = Classification(model, labels, COLUMNS, AnswerOptions()).stage(plan, "parquet")
    bare = model.load(plan.device)

    def by_job(shards: list[Shard] = shards) -> float:
        run = OutputRun.open(str(home / "answers"), {"benchmark": 1})
        work = run_stage(run, shards, stage, plan, ErrorLimit(count=0), "benchmark").work
        shutil.rmtree(home / "answers")
        return work.rows_per_second

    def by_loop() -> float:
        return rows / seconds_of(loop)

    def loop(shards: list[Shard] = shards) -> None:
        for shard in shards:
            for block in read_shard(shard, COLUMNS):
                vectors = block["embedding"].combine_chunks().flatten().to_numpy()
                bare.answer(vectors.reshape(-1, predictor.embedder.dimension), labels)

    by_job(few)  # starts Ray's workers
    loop(few)
    turns = in_turn({"job": by_job, "loop": by_loop}, config.rounds)
    job = {"rows/s": turns.figure("job", "rows/s"), "over the loop": turns.ratio("job", "loop")}
    loop_line = {"rows/s": turns.figure("loop", "rows/s")}
    title = f"SCE, {config.labels} labels, {config.engine_rows:,} vectors"
    return {title: {"job on Ray, start-up apart": job, "bare loop": loop_line}}


def _commands(config: StoreBenchmark, home: Path, model: str) -> tuple[Figures, str]:
    """`jobs/classify.py` with adapted labels on a tenth and on all rows, and with SCE."""
    fingerprint, tenth = embedder_fingerprint(config.embedder), config.rows // 10
    for rows in {tenth, config.rows, config.sce_rows}:
        write_store(home / str(rows), fingerprint, rows)
    adapted = random_adapted(config.labels, fingerprint.dimension, fingerprint.to_dict())
    names = json.dumps(label_names(config.labels, 0))
    _save(adapted, home / "adapted")
    sce, by_file = ["--labels", names, "--model", model], ["--labels-file", str(home / "adapted")]
    asked = {
        f"adapted, {tenth:,} rows": (tenth, by_file),
        f"adapted, {config.rows:,} rows": (config.rows, by_file),
        f"SCE, {config.sce_rows:,} rows": (config.sce_rows, sce),
    }
    ran: dict[str, list[WatchedJob]] = {name: [] for name in asked}

    def seconds(name: str) -> float:
        rows, flags = asked[name]
        shutil.rmtree(home / "out", ignore_errors=True)
        places = ["--input", str(home / str(rows)), "--output", str(home / "out")]
        ran[name].append(run_job_watched("classify.py", [*flags, *places]))
        return ran[name][-1].seconds

    sides: dict[str, Callable[[], float]] = {name: partial(seconds, name) for name in asked}
    copied = home / str(config.rows), home / "copy.parquet"
    sides["Parquet"] = lambda: config.rows / seconds_of(lambda: copy_alone(*copied))
    turns = in_turn(sides, config.command_rounds, and_back=False)
    found = {}
    for name, (rows, _) in asked.items():
        rates = [float(one.summary["texts_per_second"]) for one in ran[name]]
        peak = Figure.of([one.peak_megabytes for one in ran[name]], "MB", "less")
        found[name] = {
            "seconds in all": turns.figure(name, "s", "less"),
            "rows/s while answering": Figure.of(rates, "rows/s"),
            "peak of all processes, MB": peak,
        }
        if rows == config.rows and name.startswith("adapted"):
            alone = turns.values["Parquet"]
            ratios = [one / other for one, other in zip(rates, alone)]
            found[name]["over Parquet alone"] = Figure.of(ratios, "ratio")
    found["Parquet alone"] = {"rows/s while answering": turns.figure("Parquet", "rows/s")}
    peaks = [found[name]["peak of all processes, MB"].median for name in asked]
    said = f"Peak of {config.rows:,} rows over that of a tenth: {peaks[1] / peaks[0]:.2f}."
    return {f"jobs/classify.py, {config.labels} labels": found}, said


def _save(labels: Any, folder: Path) -> None:
    facts = {"model": None, "corpus": {}, "settings": {}, "versions": {}, "report": {}}
    AdaptedLabels(
        labels.label_set, labels.weight_KD, labels.bias_K, labels.temperature, labels.embedder,
        facts, {},
    ).save(folder)  # fmt: skip
