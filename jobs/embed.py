"""Embed the prepared texts and the texts of their label sets, once for every later use.

    python jobs/embed.py --config configs/quickstart/sce.yaml
    ray job submit --working-dir . -- python jobs/embed.py --config configs/paper/sce.yaml \\
        --run_dir /shared/runs/paper

Reads <run_dir>/data and writes the stores <run_dir>/embeddings/rows and .../labels. Run again,
it embeds what is new or changed, and says so where nothing is. Another embedder needs another
run_dir.

The last line of standard output is JSON. Exit code 0: done, 1: failed, 2: wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from sce.cli import run_job
from sce.distributed.embed import embed_prepared
from sce.experiment import Experiment


def embed(experiment: Experiment) -> dict[str, Any]:
    """Embed the data of an experiment; the summary of both stores."""
    return embed_prepared(
        experiment.data_dir, experiment.embeddings_dir, experiment.embedder, experiment.resources
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(Experiment, embed, __doc__ or "", argv)


if __name__ == "__main__":
    sys.exit(main())
