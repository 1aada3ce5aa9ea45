"""Put what was measured side by side, beside the paper's figures.

    python jobs/compare.py
    python jobs/compare.py --methods '["quickstart", "minilm-similarity"]' --output runs/compare
    ray job submit --working-dir . -- python jobs/compare.py \\
        --tracking.uri http://mlflow:5000 --output /shared/runs/compare

Reads the measured runs of an MLflow experiment (by default sce-evaluation: those of
jobs/train_sce.py, jobs/train_llama.py and jobs/evaluate.py; the latest of each name and seed) and
prints their accuracies with intervals, on your own rows first, and what each takes. The report has
charts, tables 1 and 2 in the paper's layout, every figure of each method, differences with
intervals and McNemar's test, epoch times and operations beside appendices R and S, and accuracy
against compute. Labels adapted by a method's vectors are methods of their own, with the seconds and
operations of their fit. It is written as Markdown, CSV and HTML to the output folder and to MLflow;
an earlier one is kept (runs/compare-2).
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.cli import run_job
from sce.workflows.experiment import CompareConfig

main = partial(run_job, CompareConfig, "sce.workflows.compare:compare", __doc__)

if __name__ == "__main__":
    sys.exit(main())
