"""Train a model, from raw texts to its measured accuracy.

    python jobs/train_sce.py --config configs/quickstart/sce.yaml
    ray job submit --working-dir . -- python jobs/train_sce.py --config configs/paper/sce.yaml \\
        --run-dir /shared/runs/paper

Prepares the data and embeds it first where that is missing or out of date, then trains, fits the
temperature, writes the Soft Contextualized Encoder and measures it:
RUN_DIR/results/report.html is one page to look at. Any setting can be given as a flag:

    python jobs/train_sce.py --config configs/quickstart/sce.yaml --train.epochs 5 --seed 1

A run that was cut short goes on with --resume, or begins again with --restart.
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.cli import run_job
from sce.workflows.experiment import Experiment

main = partial(run_job, Experiment, "sce.workflows.train:train", __doc__)

if __name__ == "__main__":
    sys.exit(main())
