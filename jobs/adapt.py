"""Let a corpus teach the labels: fit a label set to its texts.

    python jobs/adapt.py --input runs/tickets-embedded --labels-file labels.yaml \\
        --output runs/tickets-labels
    python jobs/adapt.py --input tickets/ --labels '["late delivery", "billing", "praise"]' \\
        --output runs/tickets-labels
    ray job submit --working-dir . -- python jobs/adapt.py --input s3://bucket/tickets-embedded \\
        --labels-file labels.yaml --output s3://bucket/tickets-labels

Nothing is trained, and no row needs a label. Reads an embedding store (texts are embedded into one
first), and writes a folder that stands for the labels from then on: jobs/classify.py --labels-file
FOLDER, the endpoint's `label_sets`, and `Predictor.predict(labels=AdaptedLabels.load(FOLDER))`. Its
report.html says what has changed, which labels seem to have no text, and what to do next;
to_label.jsonl is a file to fill in: with 30 to 50 labelled rows (--labelled) it is measured, and
chosen, how far to trust the fit.

Killed, the same command goes on after its last round. The same store and labels give the same
result, byte for byte.

The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.bulk_settings import AdaptConfig
from sce.workflows.cli import run_job

main = partial(run_job, AdaptConfig, "sce.workflows.adapt:adapt", __doc__)

if __name__ == "__main__":
    sys.exit(main())
