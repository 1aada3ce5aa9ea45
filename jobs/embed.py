"""Embed texts into a store, once for every label set to come.

    python jobs/embed.py --input tickets/ --store runs/tickets-embedded
    python jobs/embed.py --config configs/quickstart/sce.yaml
    ray job submit --working-dir . -- python jobs/embed.py --config configs/paper/sce.yaml \\
        --input s3://bucket/texts/ --store s3://bucket/texts-embedded

With --input: Parquet, JSONL, CSV or Excel becomes an embedding store for jobs/classify.py.
Without: reads <run_dir>/data and writes the stores <run_dir>/embeddings/rows and .../labels.

Killed, the same command goes on where it was. Run again, it embeds what is new or changed, removes
what is gone, and says so where nothing is. The embedder is that of --config, or the default;
another one needs another store.

The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

import sys
from functools import partial

from sce.workflows.cli import run_job
from sce.workflows.experiment import EmbedJob

main = partial(run_job, EmbedJob, "sce.workflows.embed:embed", __doc__)

if __name__ == "__main__":
    sys.exit(main())
