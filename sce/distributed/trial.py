"""What a few rows say before a bulk job begins, classified on the hardware that it will run on: the
threshold that labelled rows ask for, and what to expect of the whole."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sce.bulk.blocks import BlockFunction
from sce.bulk.corpus import Columns, Corpus, Shard
from sce.bulk.display import Preview, confused_pairs
from sce.bulk.exemplars import Exemplars
from sce.bulk.reading import KEEP, read_shard
from sce.distributed.backends import Classification
from sce.distributed.one_process import OneProcess
from sce.distributed.resources import use_threads
from sce.distributed.stage import Workers, plan_corpus
from sce.errors import InputError
from sce.model.decisions import fitted_share
from sce.model.options import AnswerOptions
from sce.model.rejection import MIN_SIDE, share_for_mean

SAMPLE_ROWS = 1000
"""Of a dry run at most."""
DRY_RUN_SECONDS = 5.0
"""After which a dry run has seen enough rows."""
PIECE_ROWS = 128
SAMPLE_SHARDS = 8
EXEMPLAR_ROWS, EXEMPLAR_SHARDS = 20_000, 64
"""Of a store, to find exemplars among."""
LEVEL_TEXTS, LEVEL_VECTORS = 500, 5000
"""Of an input, to find how near its texts are to the labels."""


@dataclass(frozen=True)
class FoundThreshold:
    """Of labelled rows: precision by coverage, the threshold chosen, and the label that each row
    got."""

    curve: Any
    choice: Any
    found: list[str]


def find_threshold(
    asked: Classification,
    texts: Sequence[str],
    names: Sequence[str],
    target_precision: float,
    workers: Workers,
) -> FoundThreshold:
    """Classify texts whose right labels `names` has, and choose the threshold that reaches a
    precision on them."""
    from sce.evaluation import thresholds

    answered = _answered(asked, texts, workers)
    found = answered["label"].to_pylist()
    right_N = np.array(found, object) == np.array(names, object)
    curve = thresholds.precision_coverage(answered["score"].to_numpy(), right_N)
    return FoundThreshold(curve, thresholds.choose_threshold(curve, target_precision), found)


def find_cut(
    asked: Classification,
    texts: Sequence[str],
    names: Sequence[str],
    coverage: float,
    workers: Workers,
) -> tuple[float, float]:
    """Classify texts whose right labels `names` has: the cut that leaves the right one in a share
    of rows (`sce.evaluation.conformal`), and how many labels a row it leaves of these on average.
    Raises `InputError`: they are too few."""
    from sce.evaluation.conformal import coverage_cut

    options = AnswerOptions(return_scores=True)
    scores = _answered(asked, texts, workers, options)["scores"].to_pylist()
    right_N = np.array([dict(one)[name] for one, name in zip(scores, names, strict=True)])
    cut = coverage_cut(right_N, coverage)
    left_N = [max(1, sum(p >= np.float32(cut) for _, p in one)) for one in scores]
    return cut, float(np.mean(left_N))


def find_none_threshold(
    asked: Classification, texts: Sequence[str], recall: float, workers: Workers
) -> float:
    """Ask of texts that all have a label whether any fits: the lowest `none_threshold` at which
    this share of them is answered. Raises `InputError`: they are too few."""
    if len(texts) < (least := math.ceil(1 / (1 - recall) - 1e-9)):
        raise InputError(
            f"none_recall {recall}: {len(texts)} labelled rows, but {least} are needed."
        )
    options = _none_options(asked, asked.options.none_share)
    none = _answered(asked, texts, workers, options)["none_score"].to_numpy()
    return float(np.quantile(none, recall, method="inverted_cdf"))


def none_share_of_rows(
    asked: Classification, texts: Sequence[str], none_texts: Sequence[str], workers: Workers
) -> tuple[float, float]:
    """Of labelled rows, some of which no label fits: their share, and the `none_share` at which the
    mean `none_score` is that. Raises `InputError`: they are too few."""
    if min(len(texts), len(none_texts)) < MIN_SIDE:
        raise InputError(
            f"none_label: {len(none_texts)} labelled rows that no label fits and {len(texts)} "
            f"others; {MIN_SIDE} of each are needed."
        )
    every, fitted = [*texts, *none_texts], fitted_share(asked.options.mode)
    answered = _answered(asked, every, workers, _none_options(asked, fitted))
    share = len(none_texts) / len(every)
    return share, _share_for(answered, share, asked)


def none_share_of_corpus(asked: Classification, corpus: Corpus, workers: Workers) -> float:
    """The `none_share` at which the mean `none_score` of the input is the share that was stated, by
    a sample of it. The texts of a corpus may all be nearer to their labels, or farther from them,
    than those that the score was fitted on."""
    stated = asked.options.none_share
    assert stated is not None
    columns = replace(asked.columns, keep=())
    rows = LEVEL_TEXTS if columns.text is not None else LEVEL_VECTORS
    block = _sample(plan_corpus(corpus, columns), columns, rows, EXEMPLAR_SHARDS)
    options = replace(
        _none_options(asked, fitted_share(asked.options.mode)),
        long_text=asked.options.long_text,
        pooling=asked.options.pooling,
    )
    asked = replace(asked, columns=columns, options=options)
    ((answered, _),) = _classified(asked, [block], workers)
    return _share_for(answered, stated, asked)


def _none_options(asked: Classification, share: float | None) -> AnswerOptions:
    return AnswerOptions(
        mode=asked.options.mode,
        contrast_labels=asked.options.contrast_labels,
        none_of_these=True,
        none_share=share,
    )


def _share_for(answered: pa.Table, share: float, asked: Classification) -> float:
    """The stated one where every row has an error."""
    none = answered["none_score"].drop_null().to_numpy()
    none = none[~np.isnan(none)]
    return share_for_mean(none, share, fitted_share(asked.options.mode)) if len(none) else share


def find_exemplars(
    asked: Classification, corpus: Corpus, text_column: str, workers: Workers
) -> Exemplars:
    """Classify a sample of a store, spread over it: of each label the rows that have it."""
    keep = tuple(dict.fromkeys((*asked.columns.keep, text_column)))
    columns = replace(asked.columns, keep=keep)
    block = _sample(plan_corpus(corpus, columns), columns, EXEMPLAR_ROWS, EXEMPLAR_SHARDS)
    given = asked.options
    options = AnswerOptions(none_of_these=given.none_of_these, none_threshold=given.none_threshold)
    asked = replace(asked, columns=columns, options=options)
    ((answered, _),) = _classified(asked, [block], workers)
    return Exemplars.of(block, block[f"{KEEP}{text_column}"], answered)


def _answered(
    asked: Classification,
    texts: Sequence[str],
    workers: Workers,
    options: AnswerOptions | None = None,
) -> pa.Table:
    """The answers to texts, by default without a threshold."""
    rows = len(texts)
    block = pa.table(
        {
            "place": pa.array(range(rows), pa.int64()),
            "id": pa.array([str(i) for i in range(rows)], pa.string()),
            "text": pa.array(texts, pa.string()),
            "truncated": pa.repeat(pa.scalar(False), rows),
            "error": pa.repeat(pa.scalar(""), rows),
        }
    )
    options = replace(
        options or AnswerOptions(),
        long_text=asked.options.long_text,
        pooling=asked.options.pooling,
    )
    ((answered, _),) = _classified(
        replace(asked, columns=Columns(), options=options), [block], workers
    )
    return answered


def preview(
    asked: Classification, corpus: Corpus, text_column: str | None, workers: Workers
) -> Preview:
    """Classify a sample of the input; of a row its `text_column` is shown, or else its id."""
    columns, shown = asked.columns, "text" if asked.columns.text is not None else "id"
    shards = plan_corpus(corpus, columns)
    if shown == "id" and text_column is not None:
        columns = replace(columns, keep=(*columns.keep, text_column))
        shown = f"keep.{text_column}"
    block = _sample(shards, columns)
    two_best = replace(asked.options, top_k=max(2, asked.options.top_k or 0))
    order_N = np.random.default_rng(0).permutation(block.num_rows)  # any part is of the whole input
    pieces = [
        block.take(rows_P) for rows_P in np.split(order_N, range(32, len(order_N), PIECE_ROWS))
    ]
    found = _classified(
        replace(asked, columns=columns, options=two_best), pieces, workers, DRY_RUN_SECONDS
    )
    answered = pa.concat_tables([piece for piece, _ in found])
    # The first piece waits for the labels' vectors as well.
    timed = found[1:] or found
    seconds = sum(taken for _, taken in timed) / sum(piece.num_rows for piece, _ in timed)
    file = io.BytesIO()
    pq.write_table(answered if asked.options.top_k else answered.drop_columns("top"), file)
    rows = sum(shard.rows for shard in shards)
    texts = pa.concat_tables(pieces)[shown].slice(0, answered.num_rows)
    return Preview(
        answered.append_column("shown", texts),
        confused_pairs(answered["top"].to_pylist()),
        rows,
        seconds * rows / workers.actors,
        int(file.tell() / answered.num_rows * rows),
    )


def _sample(
    shards: Sequence[Shard],
    columns: Columns,
    rows: int = SAMPLE_ROWS,
    most_shards: int = SAMPLE_SHARDS,
) -> pa.Table:
    """The first rows of some shards, spread over the input."""
    step = max(1, len(shards) // most_shards)
    chosen = shards[::step][:most_shards]
    each = max(1, rows // len(chosen))
    return pa.concat_tables(
        [next(read_shard(shard, columns)).slice(0, each) for shard in chosen]
    ).combine_chunks()


def _classified(
    asked: Classification,
    blocks: Sequence[pa.Table],
    workers: Workers,
    budget: float = math.inf,
) -> list[tuple[pa.Table, float]]:
    """The blocks one after another in one worker, until these seconds are used up: their answers,
    and what each took."""
    make = partial(asked.classifier, workers.device)
    if isinstance(workers, OneProcess):
        workers.make(make)
        workers.wait()
        return _timed(workers.apply, blocks, budget)
    import ray
    from ray.exceptions import RayTaskError

    from sce.distributed.actors import cause_of

    # The worker ends with its task, so that the model's memory is free for the job's actors.
    task = ray.remote(max_calls=1, max_retries=0, **workers.ray_arguments())(_classify)
    try:
        return ray.get(task.remote(make, workers.threads, blocks, budget))
    except RayTaskError as error:
        raise cause_of(error) from None


def _classify(
    make: Callable[[], BlockFunction], threads: int, blocks: Sequence[pa.Table], budget: float
) -> list[tuple[pa.Table, float]]:
    """What the worker runs."""
    use_threads(threads)
    return _timed(make(), blocks, budget)


def _timed(
    classify: BlockFunction, blocks: Sequence[pa.Table], budget: float
) -> list[tuple[pa.Table, float]]:
    found: list[tuple[pa.Table, float]] = []
    while len(found) < len(blocks) and sum(seconds for _, seconds in found) < budget:
        started = time.perf_counter()
        answered = classify(blocks[len(found)])
        found.append((answered, time.perf_counter() - started))
    return found
