"""Measure a model on shipped label sets, or on rows of yours.

    python jobs/evaluate.py --config configs/quickstart/sce.yaml
    python jobs/evaluate.py --config configs/quickstart/inbox.yaml
    python jobs/evaluate.py --config configs/paper/f2llm.yaml
    python jobs/evaluate.py --config configs/quickstart/sce.yaml --evaluate.labelled mine.jsonl
    python jobs/evaluate.py --embedders minilm,mpnet --evaluate.labelled mine.jsonl
    ray job submit --working-dir . -- python jobs/evaluate.py --config configs/paper/sce.yaml \\
        --run-dir /shared/runs/paper

A trained model is measured beside cosine similarity and adapted labels, on the label sets that it
was trained on, on unseen ones and on yours. `--method similarity` measures cosine similarity of the
embedder's vectors, `--method prompted` a language model that is asked (`--prompted.base`), with
LoRA adapters or without; jobs/compare.py puts what was measured side by side. `--evaluate.labelled`
takes JSONL, CSV or Parquet with the columns `text` and `label`: how good is it on your own data?
Fifty rows are enough for a first answer. Adapted labels are fitted to the texts of your rows, of
every test set with at least ten texts a label, or to those of the embedding store
`--evaluate.corpus`, without the answers (`adapted`) and with n labelled rows a label (`adapted+n`,
`--evaluate.adapted-examples`): each half of the rows is answered by a fit that had its examples
from the other half. `--no-evaluate.adapted` leaves them out.

`--evaluate.labelled-labels taxonomy.yaml` measures a tree of labels (billing: [refund, invoice]);
the rows' labels are paths, billing/refund. Beside the leaves' accuracy it says how right each level
is, and precision, recall and F1 over the nodes on the paths, of the best leaf and of answers that
stop where their probability falls below 0.5.

`--evaluate.mode multi` measures several labels a text: of `--evaluate.labelled` with a list of
labels a row, or of the test rows of unseen sets joined in pairs; beside cosine similarity with
thresholds found the same way. It writes to RUN_DIR/results-several, and the last line has a
threshold for each label.

`--evaluate.none-of-these` measures how well rows are told that no label fits, with half of the
labels taken away, or with `--evaluate.none-label oos` on rows of your own that say so; with
`--evaluate.mode multi` of rows with several labels, of which none fits those that lost all of
theirs. It writes to RUN_DIR/results-none.

`--embedders` measures several text embedders on the same rows: what each answers by cosine
similarity, SCE and adapted labels, its texts a second, memory and hours for a million texts on this
machine; and recommends one. It writes to RUN_DIR/results-embedders.

Prints a table, and writes report.html (charts, confusions with texts that show them, cost: one file
to look at), results.md, results.json, predictions.parquet and the confusion matrices to
RUN_DIR/results, or for rows of your own to RUN_DIR/results-own/FILE.
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.cli import run_job
from sce.workflows.experiment import Evaluation

main = partial(run_job, Evaluation, "sce.workflows.evaluate_embedders:evaluate_asked", __doc__)

if __name__ == "__main__":
    sys.exit(main())
