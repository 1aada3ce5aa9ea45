"""Read labelled texts from every source into one folder.

    python jobs/prepare_data.py --config configs/quickstart/sce.yaml
    python jobs/prepare_data.py --run-dir runs/mine \\
        --data.sources '[{"dataset": "custom", "name": "mine", "path": "mine.jsonl"}]'

Those of an experiment. Writes rows.parquet, label_sets.parquet and manifest.json to <run_dir>/data:
whole, or not at all. Run again with the same configuration and data, it says that nothing has
changed.
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.cli import run_job
from sce.workflows.experiment import Experiment

main = partial(run_job, Experiment, "sce.workflows.prepare:prepare", __doc__)

if __name__ == "__main__":
    sys.exit(main())
