"""Measure what an epoch costs: SCE, the embedding of its texts, and LoRA Llama, at full size.

    python jobs/epoch_cost.py --device cuda --record a6000.json
    python jobs/epoch_cost.py --device cuda --against a6000.json
    python jobs/epoch_cost.py --size tiny
    python jobs/epoch_cost.py --models sce --steps 3 --warmup 1 --batch-size 64

Section 3.3 and appendix R of the paper, by the functions that training itself uses, on models of
the real architectures with random weights: seconds an epoch of 16,000 samples, peak memory,
operations and the share of the chip's matrix rate, and the ratio beside the paper's 0.006. Then the
store path: vectors answered with 2 to 1,000 labels beside a matrix product, and files to files. The
tables go to standard output, and to --output FILE; the figures to --record FILE, which a later run
is compared --against (jobs/benchmarks/README.md).

Needs torch, transformers, peft, pyarrow, scipy, requests and pydantic-settings, and no installation
of this package; no Ray, no MLflow, no data, no network. To a machine that lacks some of them and
has no network: `pip download pydantic-settings pyarrow scipy requests`, and there `pip install
--no-index --find-links`.
For Llama's 4-bit weights it needs bitsandbytes; without it they stay as they are, and the table
says so. A step is one batch forward and backward; Llama's optimiser takes one every 32.
The last line of standard output is JSON. Exit code 0: done, 1: failed, or slower than --against, 2:
wrong settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    checkout = str(Path(__file__).resolve().parents[1])
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    from jobs.benchmarks.epoch_settings import EpochCost
    from jobs.benchmarks.records import run_benchmark

    return run_benchmark(
        "epoch_cost", EpochCost, "jobs.benchmarks.epoch_cost:benchmark_epoch", __doc__ or "", argv
    )


if __name__ == "__main__":
    sys.exit(main())
