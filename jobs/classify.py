"""Classify any number of texts with any labels, an answer a row.

    python jobs/classify.py --model runs/quickstart/model --input tickets/ \\
        --labels '["late delivery", "billing", "praise"]' --output runs/tickets \\
        --save-embeddings runs/tickets-embedded
    python jobs/classify.py --model runs/quickstart/model --input runs/tickets-embedded \\
        --labels-file labels.yaml --output runs/tickets-week2 --compare-to runs/tickets
    python jobs/classify.py --endpoint http://server:8000 --input tickets/ \\
        --labels-file labels.yaml --output runs/tickets-served
    ray job submit --working-dir . -- python jobs/classify.py --model s3://bucket/model \\
        --input s3://bucket/texts/ --labels-file s3://bucket/labels.yaml \\
        --output s3://bucket/answers

The input is Parquet, JSONL, Excel or CSV (compressed too), found out how it is written: a folder, a
glob or a URI; or an embedding store. What a folder has beside it is named and left alone.
One row goes out for each that comes in: id (by its own name), label, score, truncated, error, place
(sort by it for the order of the input), and what is asked for with --keep-columns, --top-k,
--return-scores. --output-format csv opens in spreadsheets. --compare-to writes _comparison/.
--dry-run shows what to expect first. Killed, the same command goes on where it was. A small input
of this machine is answered by one process, in seconds and without Ray (--engine).
With --endpoint a server (serve/app.py) answers, and nothing here needs a model or a GPU; its token
is best given as SCE_ENDPOINT_TOKEN.
The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.bulk_settings import ClassifyConfig
from sce.workflows.cli import run_job

main = partial(run_job, ClassifyConfig, "sce.workflows.classify:classify", __doc__)

if __name__ == "__main__":
    sys.exit(main())
