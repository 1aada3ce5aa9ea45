"""Fine-tune a trained model on rows of yours, without forgetting.

    python jobs/tune.py --model runs/quickstart/model --labelled mine.csv --output runs/mine
    python jobs/tune.py --model runs/quickstart/model --labelled mine.jsonl \\
        --labels-file labels.yaml --output runs/mine

Reads rows with the columns text and label, some twenty to a few thousand, and writes a model: it
goes wherever the first one went, and takes any other labels as well. Label sets of the starter
corpus are answered before and after: what is lost elsewhere. How many epochs are good is found by
folds; every figure on your rows is of models that were not trained on the row. Beside it stand your
rows as examples of their labels, and labels adapted to your texts with the same examples, which
train nothing: the last lines say which to take.
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.cli import run_job
from sce.workflows.experiment import TuneConfig

main = partial(run_job, TuneConfig, "sce.workflows.tune:tune", __doc__)

if __name__ == "__main__":
    sys.exit(main())
