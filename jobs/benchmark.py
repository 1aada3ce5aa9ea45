"""Measure speed and what it costs. Both sides of every ratio are measured in one run and printed.

    python jobs/benchmark.py arithmetic
    python jobs/benchmark.py embed --rows 8000
    python jobs/benchmark.py embed --rows 8000 --embedder.dtype bfloat16
    python jobs/benchmark.py classify --output runs/benchmark
    python jobs/benchmark.py store --record store.json
    python jobs/benchmark.py store --against store.json
    python jobs/benchmark.py memory --rows 1000000
    python jobs/benchmark.py serve --model runs/quickstart/model
    python jobs/benchmark.py overload --clients '[300, 600]'
    python jobs/benchmark.py shortlist --model runs/quickstart/model --labelled intents.jsonl
    python jobs/benchmark.py trees --model runs/quickstart/model --data FOLDER
    python jobs/benchmark.py pairs --model runs/quickstart/model --data FOLDER
    python jobs/benchmark.py scale
    python jobs/benchmark.py adaptation --data FOLDER
    python jobs/benchmark.py sample --data FOLDER
    python jobs/benchmark.py linear --rows 1000000

Sections: `arithmetic` (an embedder in float32 and bfloat16, with padding and without, and what that
moves), `embed` (Ray's embed path against the bare embedder on the same batches), `classify` (a new
label set from a store and from text, and what users would take instead: GLiClass, an NLI pipeline,
cosine similarity), `store` (the store path: its share of the matrix rate, files to files beside
Parquet alone, the job on Ray beside a bare loop, commands from start to end), `memory` (peaks of
the job at two sizes of input and of a resume half-way), `serve` (the endpoint under load beside the
bare predictor and GLiClass's server, latencies, bulk work through it), `overload` (the endpoint
under far more clients than it can answer: statuses, `/health`, memory that is kept), `shortlist`
(its cost in accuracy on labelled rows of yours), `trees` (a tree of 2,000 leaves beside the same
leaves as a flat set), `pairs` (mode multi on texts joined in pairs, and on Debian's packages with
their tags, beside cosine similarity), `scale` (1, 2 and 4 logical nodes of a fixed share of the
machine, row ids with next to no work, what 100 million texts would take), `adaptation` (accuracy of
labels that were fitted to a corpus, on labelled sets in `data` and on the corpora that ship),
`sample` (the same by how many texts the fit reads), `linear` (what fitting them takes).
jobs/benchmarks/README.md says how to read the figures, and what `--record` and `--against` do.
The last line of standard output is JSON. Exit code 0: done, 1: failed, or slower than `--against`,
2: wrong input.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

SECTIONS = (
    "arithmetic", "embed", "classify", "store", "memory", "serve", "overload", "shortlist",
    "trees", "pairs", "scale", "adaptation", "sample", "linear",
)  # fmt: skip
"""Each a module of `jobs.benchmarks` with a class `XBenchmark` and a function `benchmark_x`."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] not in SECTIONS:
        asked = arguments[:1] in (["-h"], ["--help"])
        usage = f"usage: benchmark.py {{{','.join(SECTIONS)}}} [settings]"
        print(f"{usage}\n\n{__doc__}" if asked else usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    _find_checkout()
    from jobs.benchmarks.records import run_benchmark

    section = arguments[0]
    module = importlib.import_module(f"jobs.benchmarks.{section}")
    config_class = getattr(module, f"{section.capitalize()}Benchmark")
    measure = getattr(module, f"benchmark_{section}")
    return run_benchmark(section, config_class, measure, __doc__ or "", arguments[1:])


def _find_checkout() -> None:
    """`jobs` and `serve` are not installed: this process and Ray's workers find them in the
    checkout."""
    checkout = str(Path(__file__).resolve().parents[1])
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if checkout not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([checkout, *filter(None, known)])


if __name__ == "__main__":
    sys.exit(main())
