"""What adapted labels take: the fit at several sizes of corpus, and answering a store with them.

Jobs run as processes of their own, as a user would start them. Vectors are random, so the fit is
told to adapt whatever it finds: speed does not depend on them. Answering is measured beside SCE on
a hundredth of the rows, and beside reading the store and writing such answers without any work
between.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from jobs.benchmarks.inputs import label_names, write_model, write_store
from jobs.benchmarks.process_memory import PeakMemory
from jobs.benchmarks.rounds import markdown_table
from sce.config import JobConfig
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig
from sce.embedding.store import EmbeddingStore, embedding_matrix

JOBS = Path(__file__).parents[1]


class LinearBenchmark(JobConfig):
    """Settings of `benchmark.py linear`."""

    rows: list[int] = [100_000, 1_000_000]
    """Sizes of the corpus."""
    label_counts: list[int] = [10, 100]
    rounds: int = Field(default=2, ge=1)
    """Of answering, each side in turn."""
    embedder: EmbedderConfig = EmbedderConfig()


def benchmark_linear(config: LinearBenchmark) -> dict[str, Any]:
    """Print both tables; the figures again as JSON."""
    found: dict[str, Any] = {"fit": [], "answer": []}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        write_model(home / "model", config.embedder)
        most = max(config.rows)
        for rows in sorted({*config.rows, most // 10, most // 100}):
            write_store(home / str(rows), embedder_fingerprint(config.embedder), rows)
        for rows in config.rows:
            for count in config.label_counts:
                found["fit"].append(_fit(home, rows, count))
        for count in config.label_counts:
            found["answer"].append(_answer(home, most, count, config))
    print(
        markdown_table(
            ["rows", "labels", "read of them", "seconds", "peak of all processes, MB"],
            [[f"{value:,}" for value in row.values()] for row in found["fit"]],
        )
    )
    print(
        markdown_table(
            ["labels", "adapted, rows/s", "SCE, rows/s", "Parquet alone, rows/s",
             "adapted / SCE", "adapted / Parquet", "peak, whole / tenth"],
            [[*row.values()] for row in found["answer"]],
        )
    )  # fmt: skip
    return found


def _fit(home: Path, rows: int, count: int) -> dict[str, Any]:
    output = _labels_folder(home, count, rows)
    summary, seconds, peaks = _run(
        "adapt.py", home / str(rows), output,
        ["--labels", json.dumps(label_names(count, 0)), "--trust", "default"],
    )  # fmt: skip
    fitted = summary["fitted_rows"]
    return {
        "rows": rows,
        "labels": count,
        "fitted_rows": fitted,
        "seconds": seconds,
        "peak_mb": round(sum(peaks.values()) / 1e6),
    }


def _answer(home: Path, most: int, count: int, config: LinearBenchmark) -> dict[str, Any]:
    tenth = most // 10
    labels = ["--labels-file", str(_labels_folder(home, count, config.rows[0]))]
    names = ["--labels", json.dumps(label_names(count, 0)), "--model", str(home / "model")]
    rates: dict[str, list[float]] = {"adapted": [], "sce": [], "parquet": []}
    peaks: dict[int, float] = {}
    for turn in range(config.rounds):
        for rows in (tenth, most):
            output = home / f"adapted-{count}-{rows}-{turn}"
            summary, _, found = _run("classify.py", home / str(rows), output, labels)
            peaks[rows] = max(peaks.get(rows, 0.0), sum(found.values()))
        rates["adapted"].append(summary["texts_per_second"])
        output = home / f"sce-{count}-{turn}"
        few = home / str(most // 100)
        rates["sce"].append(_run("classify.py", few, output, names)[0]["texts_per_second"])
        rates["parquet"].append(_parquet_alone(home / str(most), home / "copy.parquet"))
    means = {name: float(np.mean(values)) for name, values in rates.items()}
    return {
        "labels": count,
        **{name: f"{mean:,.0f}" for name, mean in means.items()},
        "over_sce": round(means["adapted"] / means["sce"], 1),
        "over_parquet": round(means["adapted"] / means["parquet"], 2),
        "peak_ratio": round(peaks[most] / peaks[tenth], 2),
    }


def _labels_folder(home: Path, count: int, rows: int) -> Path:
    return home / f"labels-{count}-{rows}"


def _run(
    job: str, store: Path, output: Path, flags: list[str]
) -> tuple[dict[str, Any], float, dict[str, float]]:
    """A job's summary, its seconds, and the bytes at the peak by kind of process."""
    command = [sys.executable, str(JOBS / job), "--input", str(store), "--output", str(output)]
    command += [*flags, "--no-tracking.enabled"]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, start_new_session=True, text=True, cwd=JOBS.parent
    )
    with PeakMemory(process.pid) as memory:
        out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    seconds = round(time.perf_counter() - started, 1)
    return json.loads(out.splitlines()[-1]), seconds, memory.peaks()


def _parquet_alone(store: Path, output: Path) -> float:
    """Rows a second of reading a store's vectors and writing as many answers."""
    opened, rows, writer = EmbeddingStore.open(store), 0, None
    started = time.perf_counter()
    for part in opened.manifest.parts:
        table = opened.read_part(part, ["row_id", "embedding"])
        count = len(embedding_matrix(table["embedding"]))
        answers = pa.table(
            {
                "id": table["row_id"],
                "label": pa.repeat("a label", count),
                "score": pa.array(np.zeros(count, np.float32)),
                "truncated": pa.repeat(False, count),
                "error": pa.repeat("", count),
                "place": pa.array(np.arange(rows, rows + count)),
            }
        )
        writer = writer or pq.ParquetWriter(output, answers.schema)
        writer.write_table(answers)
        rows += count
    if writer is not None:
        writer.close()
    return rows / (time.perf_counter() - started)
