"""Measure speed. Both sides of every ratio are measured in one run and printed.

    python jobs/benchmark.py embed --rows 8000
    python jobs/benchmark.py embed --rows 8000 --embedder.dtype bfloat16
    python jobs/benchmark.py classify --output runs/benchmark
    python jobs/benchmark.py memory --rows 1000000
    python jobs/benchmark.py serve --model runs/quickstart/model
    python jobs/benchmark.py shortlist --model runs/quickstart/model --labelled intents.jsonl

Sections: `embed` (Ray's embed path against the bare embedder on the same batches), `classify` (a
new label set from a store and from text, the Ray job beside a bare loop, and what users would
take instead: GLiClass, an NLI pipeline, cosine similarity), `memory` (peaks of the job at two sizes
of input and of a resume half-way), `serve` (the endpoint under load beside the bare predictor and
GLiClass's server, latencies, bulk work through it), `shortlist` (its cost in accuracy on labelled
rows of yours).
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from jobs.benchmarks.classify import ClassifyBenchmark, benchmark_classify
from jobs.benchmarks.embed import EmbedBenchmark, benchmark_embed
from jobs.benchmarks.memory import MemoryBenchmark, benchmark_memory
from jobs.benchmarks.serve import ServeBenchmark, benchmark_serve
from jobs.benchmarks.shortlist import ShortlistBenchmark, benchmark_shortlist
from sce.config import JobConfig
from sce.workflows.cli import run_job

SECTIONS: dict[str, tuple[type[JobConfig], Callable[[Any], dict[str, Any]]]] = {
    "embed": (EmbedBenchmark, benchmark_embed),
    "classify": (ClassifyBenchmark, benchmark_classify),
    "memory": (MemoryBenchmark, benchmark_memory),
    "serve": (ServeBenchmark, benchmark_serve),
    "shortlist": (ShortlistBenchmark, benchmark_shortlist),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] not in SECTIONS:
        print(f"usage: benchmark.py {{{','.join(SECTIONS)}}} [settings]", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    config_class, measure = SECTIONS[arguments[0]]
    return run_job(config_class, measure, __doc__ or "", arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
