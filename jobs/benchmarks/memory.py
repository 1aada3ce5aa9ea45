"""Peak memory of `jobs/classify.py`: at a tenth of the rows, at all of them, and resuming half-way.

The job runs as a process of its own, as a user would start it, and is watched from here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

from pydantic import Field

from jobs.benchmarks.inputs import label_names, write_model, write_store
from jobs.benchmarks.process_memory import WatchedJob, run_job_watched
from jobs.benchmarks.records import Benchmark, Measured
from jobs.benchmarks.rounds import Figure, Figures, in_turn
from sce.bulk.output import read_run, rows_done
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig

TENTH, WHOLE, RESUMED = "a tenth of the rows", "all rows", "all rows, resumed half-way"


class MemoryBenchmark(Benchmark):
    """Settings of `benchmark.py memory`."""

    rows: int = Field(default=1_000_000, ge=100)
    label_count: int = Field(default=2, ge=1)
    rounds: int = Field(default=1, ge=1)
    embedder: EmbedderConfig = EmbedderConfig()


def benchmark_memory(config: MemoryBenchmark) -> Measured:
    """MB at the peak, of the driver, of the model's actor and of Ray's other workers, and over
    those of a tenth of the rows."""
    ran: dict[str, list[WatchedJob]] = {TENTH: [], WHOLE: [], RESUMED: []}
    stopped: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        write_model(home / "model", config.embedder)
        for name, rows in (("tenth", config.rows // 10), ("whole", config.rows)):
            write_store(home / name, embedder_fingerprint(config.embedder), rows)
        names = json.dumps(label_names(config.label_count, 0))
        flags = ["--model", str(home / "model"), "--labels", names, "--output", str(home / "out")]
        flags += ["--engine", "ray"]  # which a tenth may be too little for

        def done_by_half() -> bool:
            return _rows_confirmed(home / "out") >= config.rows // 2

        def seconds(name: str) -> float:
            shutil.rmtree(home / "out", ignore_errors=True)
            source = ["--input", str(home / ("tenth" if name == TENTH else "whole"))]
            if name == RESUMED:
                run_job_watched("classify.py", [*flags, *source], done_by_half)
                stopped.append(_rows_confirmed(home / "out"))
            ran[name].append(run_job_watched("classify.py", [*flags, *source]))
            return ran[name][-1].seconds

        turns = in_turn({name: partial(seconds, name) for name in ran}, config.rounds, False)
    table: dict[str, dict[str, Figure]] = {name: {} for name in ran}
    ratios: dict[str, dict[str, Figure]] = {WHOLE: {}, RESUMED: {}}
    for kind in ran[TENTH][0].peaks:
        peaks = {name: [job.peaks.get(kind, 0) / 1e6 for job in jobs] for name, jobs in ran.items()}
        for name, values in peaks.items():
            table[name][f"{kind}, MB"] = Figure.of(values, "MB", "less")
        for name in ratios:
            over = [one / tenth for one, tenth in zip(peaks[name], peaks[TENTH])]
            ratios[name][kind] = Figure.of(over, "ratio", "less")
    for name in ran:
        table[name]["seconds"] = turns.figure(name, "s", "less")
    figures: Figures = {"peak memory": table, "over a tenth of the rows": ratios}
    return Measured(figures, details={"stopped_after_rows": stopped})


def _rows_confirmed(folder: Path) -> int:
    run = read_run(str(folder))
    return 0 if run is None else rows_done(run)
