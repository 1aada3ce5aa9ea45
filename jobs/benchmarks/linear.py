"""What fitting labels to a corpus takes, at several sizes of corpus.

Jobs run as processes of their own, as a user would start them. Vectors are random, so the fit is
told to adapt whatever it finds: speed does not depend on them. What answering with them takes is
`store`'s.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

from pydantic import Field

from jobs.benchmarks.inputs import label_names, write_model, write_store
from jobs.benchmarks.process_memory import run_job_watched
from jobs.benchmarks.records import Benchmark, Measured
from jobs.benchmarks.rounds import Figure, in_turn
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig


class LinearBenchmark(Benchmark):
    """Settings of `benchmark.py linear`."""

    rows: list[int] = [100_000, 1_000_000]
    """Sizes of the corpus."""
    label_counts: list[int] = [10, 100]
    rounds: int = Field(default=1, ge=1)
    """In each every fit runs twice."""
    embedder: EmbedderConfig = EmbedderConfig()


def benchmark_linear(config: LinearBenchmark) -> Measured:
    """Seconds from command to last line, and the peak of all processes."""
    peaks: dict[str, list[float]] = {}
    read: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        write_model(home / "model", config.embedder)
        for rows in config.rows:
            write_store(home / str(rows), embedder_fingerprint(config.embedder), rows)

        def seconds(rows: int, labels: int) -> float:
            shutil.rmtree(home / "labels", ignore_errors=True)
            ran = run_job_watched("adapt.py", [
                "--input", str(home / str(rows)), "--output", str(home / "labels"),
                "--labels", json.dumps(label_names(labels, 0)), "--trust", "default",
            ])  # fmt: skip
            name = _name(rows, labels)
            peaks.setdefault(name, []).append(ran.peak_megabytes)
            read[name] = ran.summary["fitted_rows"]
            return ran.seconds

        cases = [(rows, labels) for rows in config.rows for labels in config.label_counts]
        sides = {_name(*case): partial(seconds, *case) for case in cases}
        turns = in_turn(sides, config.rounds)
    fits = {
        name: {
            "seconds": turns.figure(name, "s", "less"),
            "peak of all processes, MB": Figure.of(peaks[name], "MB", "less"),
        }
        for name in sides
    }
    return Measured({"jobs/adapt.py": fits}, details={"rows_read": read})


def _name(rows: int, labels: int) -> str:
    return f"{rows:,} rows, {labels} labels"
