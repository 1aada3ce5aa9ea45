"""What more nodes gain, what Ray's side of a hundred million rows costs, and how long a hundred
million texts would take.

`nodes`: texts a second of embedding and of classifying on 1, 2 and 4 logical nodes of a fixed share
of this machine. `rows`: the job on row ids with next to no work (two adapted labels, vectors of one
number): what is left are files, tasks, commits and what the driver does by itself. `forecast`: from
the operations of a text, the paper's models and the two parts above, what 1, 8 and 64 GPUs take.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt

from jobs.benchmarks.inputs import label_names, make_texts, write_model, write_store
from jobs.benchmarks.process_memory import PeakMemory
from jobs.benchmarks.records import Benchmark, Measured, arithmetic_of
from jobs.benchmarks.rounds import Figure, Figures, seconds_of
from jobs.benchmarks.scale_nodes import ACTOR_CPUS, logical_nodes
from jobs.benchmarks.store_path import COLUMNS, plan_store, random_adapted
from sce.bulk.blocks import ROWS_PER_FILE, Stage
from sce.bulk.classifier import BlockClassifier
from sce.bulk.corpus import Columns, open_corpus
from sce.bulk.counts import ErrorLimit
from sce.bulk.local import LinearPredictor
from sce.bulk.output import COMMIT_ROWS, RUN_FILE, OutputRun
from sce.distributed.backends import VECTOR_BLOCK_BYTES, Classification, LocalModel
from sce.distributed.embed import embed_corpus
from sce.distributed.resources import ActorPlan, embed_actors
from sce.distributed.session import ensure_ray
from sce.distributed.settings import ResourcesConfig
from sce.distributed.stage import plan_corpus, run_stage
from sce.embedding.settings import EmbedderConfig
from sce.evaluation import flops
from sce.labels import LabelSet
from sce.model.options import AnswerOptions
from sce.predictor import Predictor

INPUT_FILE_ROWS = 1_000_000
TEXT_TOKENS = 32
GPU_COUNTS = (1, 8, 64)
A6000_FLOPS = 154.8e12
"""Of an RTX A6000's tensor cores in bfloat16, dense, by its data sheet."""
PAPER_TOKENS = 84
"""Of a mean text of the paper's (appendix S)."""


class ScaleBenchmark(Benchmark):
    """Settings of `benchmark.py scale`."""

    parts: list[Literal["nodes", "rows", "forecast"]] = ["nodes", "rows", "forecast"]
    node_counts: list[PositiveInt] = [1, 2, 4]
    texts_a_node: int = Field(default=2_000, ge=1)
    """To embed."""
    vectors_a_node: int = Field(default=30_000, ge=1)
    """To classify."""
    labels: int = Field(default=10, ge=1)
    row_counts: list[PositiveInt] = [1_000_000, 10_000_000]
    """Of `rows`. A hundred million take 4 GB of disk and seven minutes on two cores."""
    rounds: int = Field(default=1, ge=1)
    texts: int = Field(default=100_000_000, ge=1)
    """Of `forecast`."""
    utilisation: float = Field(default=0.35, gt=0, le=1)
    """Of a GPU's bfloat16 rate: an assumption, which the forecast names."""
    embedder: EmbedderConfig = EmbedderConfig()
    resources: ResourcesConfig = ResourcesConfig()


def benchmark_scale(config: ScaleBenchmark) -> Measured:
    """Every part that is asked for.

    Raises:
        ConfigError: `nodes` on a machine that lets nobody limit a process to a share of it.
    """
    figures: Figures = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        home = Path(scratch)
        folder = write_model(home / "model", config.embedder)
        predictor = Predictor.from_pretrained(folder, config.embedder, "cpu")
        efficiency = serial = None
        if "nodes" in config.parts:
            found, efficiency = _nodes(config, home, folder, predictor)
            figures |= found
        if "rows" in config.parts:
            found, serial = _rows(config, home)
            figures |= found
        if "forecast" in config.parts:
            found, said = forecast(config, efficiency, serial)
            figures, notes = figures | found, [*notes, *said]
        kinds = arithmetic_of(embedder=predictor.embedder, encoder=predictor.model)
    return Measured(figures, kinds, tuple(notes))


def _nodes(
    config: ScaleBenchmark, home: Path, model: str, predictor: Predictor
) -> tuple[Figures, float]:
    """Texts a second by number of nodes, and how much of what so many nodes could do the most of
    them did, in the worse of the two jobs."""
    most = max(config.node_counts)
    share = round((psutil.cpu_count() or 1) / (most + 1), 2)
    texts = make_texts(predictor, config.texts_a_node * most, TEXT_TOKENS)
    write_store(home / "store", predictor.embedder.fingerprint, config.vectors_a_node * most, 2_000)
    local = LocalModel.find(model, config.embedder, "auto", exact=False)
    labels = LabelSet.parse(label_names(config.labels, 0))
    classification = Classification(local, labels, COLUMNS, AnswerOptions())

    def rates(count: int) -> dict[str, float]:
        asked = config.resources.model_copy(
            update={"embed_actors": count, "cpus_per_embed_actor": ACTOR_CPUS}
        )
        with logical_nodes(count, share), tempfile.TemporaryDirectory(dir=home) as here:
            plan = embed_actors(asked)
            some = texts[: config.texts_a_node * count]
            pieces = [some[i : i + 50] for i in range(0, len(some), 50)]
            (Path(here) / "texts").mkdir()
            with pq.ParquetWriter(
                f"{here}/texts/0.parquet", pa.schema({"text": pa.string()})
            ) as out:
                for piece in pieces:  # a row group each: what is read, and spread over the nodes
                    out.write_table(pa.table({"text": piece}))
            _, embedded = embed_corpus(
                open_corpus([f"{here}/texts"]), Columns(), f"{here}/store", config.embedder, plan,
                ErrorLimit(count=0),
            )  # fmt: skip
            shards, _ = plan_store(home / "store")
            shards = shards[: config.vectors_a_node * count // 2_000 or 1]
            run = OutputRun.open(f"{here}/answers", {"benchmark": 1})
            stage = classification.stage(plan, "parquet")
            answered = run_stage(run, shards, stage, plan, ErrorLimit(count=0), "benchmark").work
        return {
            "embed": embedded["texts_per_second"],
            "classify": answered.rows_per_second,
        }

    found: dict[int, list[dict[str, float]]] = {count: [] for count in config.node_counts}
    for _ in range(config.rounds):
        for count in config.node_counts:
            found[count].append(rates(count))
    table: dict[str, dict[str, Figure | str]] = {}
    worst = 1.0
    one = found[min(found)]
    for count, values in found.items():
        line: dict[str, Figure | str] = {}
        for job in ("embed", "classify"):
            line[f"{job}, texts/s"] = Figure.of([value[job] for value in values], "texts/s")
            over = [v[job] / o[job] * min(found) / count for v, o in zip(values, one)]
            line[f"{job}, of ideal"] = Figure.of(over, "ratio")
            worst = min(worst, float(np.median(over)))
        table[f"{count} nodes"] = line
    return {f"nodes of {share:g} cores": table}, worst


def _empty_work() -> BlockClassifier:
    """Answers from vectors of one number: two products a row."""
    labels: Any = random_adapted(2, 1, {})
    return BlockClassifier(LinearPredictor(EmbedderConfig(), 1), labels, COLUMNS, AnswerOptions())


def _rows(config: ScaleBenchmark, home: Path) -> tuple[Figures, float]:
    """The stage on so many row ids; and seconds of the driver's own processor time a million rows,
    which more nodes do not shorten."""
    ensure_ray()
    plan = embed_actors(config.resources, default_cpus=0.5)
    stage = Stage(_empty_work, COLUMNS, "parquet", ROWS_PER_FILE, VECTOR_BLOCK_BYTES)
    table: dict[str, dict[str, Figure | str]] = {}
    serial = 0.0
    for rows in config.row_counts:
        source = home / f"ids-{rows}"
        write_row_ids(source, rows)
        run = OutputRun.open(str(home / f"answers-{rows}"), {"benchmark": rows})
        me = psutil.Process()
        before = sum(me.cpu_times()[:2])
        with PeakMemory() as memory:
            seconds = seconds_of(partial(_work_off, run, source, stage, plan))
        driver = sum(me.cpu_times()[:2]) - before
        serial = driver / rows * 1e6
        peaks = memory.peaks()
        files = sum(len(run.part_files(number)) for number in run.parts)
        table[f"{rows:,} rows"] = {
            "seconds": Figure.of(seconds, "s", "less"),
            "rows/s": Figure.of(rows / seconds, "rows/s"),
            "driver, processor seconds": Figure.of(driver, "s", "less"),
            "driver, MB": Figure.of(peaks.get("driver", 0) / 1e6, "MB", "less"),
            "largest worker, MB": Figure.of(
                max(peaks.get(kind, 0) for kind in ("actor", "worker")) / 1e6, "MB", "less"
            ),
            "files": f"{files:,}",
            "state file, kB": f"{(home / f'answers-{rows}' / RUN_FILE).stat().st_size / 1e3:.1f}",
        }
    return {"next to no work a row": table}, serial


def _work_off(run: OutputRun, source: Path, stage: Stage, plan: ActorPlan) -> None:
    shards = plan_corpus(open_corpus([str(source)]), COLUMNS)
    limit = ErrorLimit(count=0)
    run_stage(run, shards, stage, plan, limit, "row ids", COMMIT_ROWS)


def write_row_ids(folder: Path, rows: int) -> None:
    """Parquet with the ids 0, 1, ... and a vector of one number each, a million to a file."""
    folder.mkdir()
    for first in range(0, rows, INPUT_FILE_ROWS):
        count = min(INPUT_FILE_ROWS, rows - first)
        ids = pa.array(np.arange(first, first + count)).cast(pa.string())
        ones = pa.array(np.ones(count, np.float32))
        vectors = pa.FixedSizeListArray.from_arrays(ones, 1)
        table = pa.table({"row_id": ids, "embedding": vectors})
        pq.write_table(table, folder / f"ids-{first:09d}.parquet", row_group_size=ROWS_PER_FILE)


def forecast(
    config: ScaleBenchmark, efficiency: float | None, serial: float | None
) -> tuple[Figures, list[str]]:
    """What `texts` texts take on A6000s with the paper's models: hours to embed them, and minutes
    for a new label set afterwards.

    Args:
        efficiency: of the nodes measured above, of ideal; None for 1.
        serial: seconds of the driver a million rows; None for 0.
    """
    rate = A6000_FLOPS * config.utilisation
    embed = flops.exact_forward(flops.JINA_V3, PAPER_TOKENS) / rate
    encode = flops.exact_forward(flops.ROBERTA_BASE, config.labels + 1) / rate
    alone = (serial or 0.0) * config.texts / 1e6
    table: dict[str, dict[str, Figure | str]] = {}
    for gpus in GPU_COUNTS:
        good = 1.0 if gpus == 1 else efficiency or 1.0
        work = {way: cost * config.texts / gpus / good for way, cost in
                (("embed", embed), ("label set", encode))}  # fmt: skip
        table[f"{gpus} A6000"] = {
            "embed, hours": f"{max(work['embed'], alone) / 3600:.1f}",
            "a new label set, minutes": f"{max(work['label set'], alone) / 60:.1f}",
            "the driver alone, minutes": f"{alone / 60:.1f}",
        }
    notes = [
        f"Forecast: {config.texts:,} texts of {PAPER_TOKENS} tokens, jina-embeddings-v3, "
        f"{config.labels} labels, roberta-base; {config.utilisation:.0%} of an A6000's "
        f"{A6000_FLOPS / 1e12:g} TFLOP/s (assumed, nothing of it was measured on one); nodes at "
        f"{'1 (not measured)' if efficiency is None else f'{efficiency:.2f}'} of ideal, at 8 as at "
        "64; reading and writing keep up, 4 kB a vector; where the driver takes longer than "
        "the GPUs, it is what is waited for.",
    ]
    return {f"forecast, {config.texts:,} texts": table}, notes
