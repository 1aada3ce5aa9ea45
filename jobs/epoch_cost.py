"""Measure what an epoch costs: SCE, the embedding of its texts, and LoRA Llama, at full size.

    python jobs/epoch_cost.py
    python jobs/epoch_cost.py --size tiny
    python jobs/epoch_cost.py --models sce --steps 3 --warmup 1 --batch-size 64

Section 3.3 and appendix R of the paper, by the functions that training itself uses, on models of
the real architectures with random weights: seconds an epoch of 16,000 samples, peak memory,
operations and the share of the chip's matrix rate, and the ratio beside the paper's 0.006. The
table goes to standard output, and to --output FILE.

Needs torch, transformers and peft; no Ray, no MLflow, no data, no network. Where this package is
not installed: `python -m jobs.epoch_cost` in the checkout. For Llama's 4-bit weights it needs
bitsandbytes; without it they stay as they are, and the table says so. A step is one batch forward
and backward; Llama's optimiser takes one every 32.
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong settings.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.benchmarks.epoch_cost import measure, read_settings
from sce.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    prog = sys.argv[0]
    try:
        arguments = sys.argv[1:] if argv is None else list(argv)
        settings = read_settings(arguments, prog, __doc__ or "")
        report, summary = measure(settings)
    except InputError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    print(report)
    if settings.output is not None:
        Path(settings.output).write_text(report + "\n", encoding="utf-8")
    print(json.dumps(summary), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
