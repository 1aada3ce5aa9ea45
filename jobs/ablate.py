"""Train variants of an experiment with several seeds, in a table.

    python jobs/ablate.py --config configs/news/ablation.yaml
    python jobs/ablate.py --config configs/quickstart/sce.yaml --seeds '[0, 1, 2]' \\
        --variants '{"prior": {}, "no prior": {"model": {"prior_scale": 0}}}'

A variant is what it changes of the experiment's settings. Each is trained and measured as
jobs/train_sce.py does it, in a folder of its own below `run_dir`, and the table is read from
MLflow: accuracy of each dataset, with the range over the seeds or the interval of one, and the
seconds of a training. What is trained already with the same settings is not trained again. Which
recipe is best is to be read from columns that are not reported: leave a dataset out of a training.
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.cli import run_job
from sce.workflows.experiment import Ablation

main = partial(run_job, Ablation, "sce.workflows.ablate:ablate", __doc__)

if __name__ == "__main__":
    sys.exit(main())
