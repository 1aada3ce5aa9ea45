"""Peak memory of `jobs/classify.py`: at a tenth of the rows, at all of them, and resuming half-way.

The job runs as a process of its own, as a user would start it, and is watched from here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from jobs.benchmarks.inputs import label_names, write_model, write_store
from jobs.benchmarks.process_memory import PeakMemory
from sce.bulk.output import read_run, rows_done
from sce.config import JobConfig
from sce.embedding.checkpoint import embedder_fingerprint
from sce.embedding.settings import EmbedderConfig

_JOB = Path(__file__).parents[1] / "classify.py"


class MemoryBenchmark(JobConfig):
    """Settings of `benchmark.py memory`."""

    rows: int = Field(default=1_000_000, ge=100)
    label_count: int = Field(default=2, ge=1)
    embedder: EmbedderConfig = EmbedderConfig()


def benchmark_memory(config: MemoryBenchmark) -> dict[str, Any]:
    """Bytes at the peak, of the driver, of the model's actor and of Ray's other workers.

    Returns:
        Peaks of each run, and `ratio_...`: the peak of all rows, and of the resumed run, over
        that of a tenth, by kind of process.
    """
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        write_model(home / "model", config.embedder)
        for name, rows in (("tenth", config.rows // 10), ("whole", config.rows)):
            write_store(home / name, embedder_fingerprint(config.embedder), rows)
        found: dict[str, Any] = {
            "rows": config.rows,
            "label_count": config.label_count,
            "tenth": _run(home, "tenth", config, "tenth"),
            "whole": _run(home, "whole", config, "whole"),
        }
        stopped = _run(home, "whole", config, "resumed", stop_at=config.rows // 2)
        found["stopped_after_rows"] = stopped["rows_confirmed"]
        found["resumed"] = _run(home, "whole", config, "resumed")
    tenth = found["tenth"]["peak_bytes"]
    for name in ("whole", "resumed"):
        peaks = found[name]["peak_bytes"]
        found[f"ratio_{name}"] = {
            kind: round(peaks[kind] / tenth[kind], 3) for kind in tenth if kind in peaks
        }
    return found


def _run(
    home: Path, store: str, config: MemoryBenchmark, output: str, stop_at: int | None = None
) -> dict[str, Any]:
    folder = home / f"answers-{output}"
    names = json.dumps(label_names(config.label_count, 0))
    command = [sys.executable, str(_JOB), "--model", str(home / "model"), "--labels", names]
    command += ["--input", str(home / store), "--output", str(folder), "--no-tracking.enabled"]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, start_new_session=True, text=True, cwd=_JOB.parents[1]
    )
    with PeakMemory(process.pid) as memory:
        if stop_at is not None:
            while process.poll() is None and _rows_confirmed(folder) < stop_at:
                time.sleep(0.2)
            os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    found = {
        "peak_bytes": memory.peaks(),
        "seconds": round(time.perf_counter() - started, 1),
        "rows_confirmed": _rows_confirmed(folder),
    }
    if stop_at is None:
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
        summary = json.loads(out.splitlines()[-1])
        found |= {name: summary[name] for name in ("rows_out", "rows_this_run", "texts_per_second")}
    return found


def _rows_confirmed(folder: Path) -> int:
    run = read_run(str(folder))
    return 0 if run is None else rows_done(run)
