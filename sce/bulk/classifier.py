"""One block of rows in, one block of answers out: what a bulk job does to its input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from sce.bulk.answering import BlockPredictor, Vectors
from sce.bulk.corpus import Columns
from sce.bulk.exemplars import Exemplars
from sce.bulk.output import TOP
from sce.bulk.reading import OWN_COLUMNS, kept_columns
from sce.bulk.rows import (
    Errors,
    check_chunks,
    check_ids,
    check_labels,
    check_texts,
    check_vectors,
    row_labels,
)
from sce.labels import LabelSet
from sce.model.answers import Answers, Example
from sce.model.decisions import LabelLists, decide
from sce.model.label_tree import answer_names, tree_of
from sce.model.linear_labels import LinearLabels
from sce.model.options import PATH_COLUMN, SEVERAL_COLUMN, AnswerOptions

WHERE = pa.struct([("start", pa.int32()), ("end", pa.int32())])
EXAMPLE = pa.struct([("text", pa.string()), ("label", pa.string()), ("similarity", pa.float32())])
WHY = pa.struct([("nearest", pa.list_(EXAMPLE)), ("competitor", TOP.value_type)])
ROW_EXAMPLE = pa.struct([*EXAMPLE, ("row", pa.string())])
WHY_OF_ROWS = pa.struct([("nearest", pa.list_(ROW_EXAMPLE)), ("competitor", TOP.value_type)])
SCORES = pa.map_(pa.string(), pa.float32())


class BlockClassifier:
    """Classifies blocks that `read_shard` made. With a column of labels, `labels` are what is known
    of some of them, or None. The `exemplars` are of the corpus that the blocks are of."""

    def __init__(
        self,
        predictor: BlockPredictor,
        labels: LabelSet | LinearLabels | None,
        columns: Columns,
        options: AnswerOptions,
        exemplars: Exemplars | None = None,
    ) -> None:
        self._exemplars = exemplars
        self._predictor = predictor
        self._labels: Any = labels
        self._known = {lb.key: lb for lb in labels.labels} if isinstance(labels, LabelSet) else {}
        self._names = pa.array(labels.names, pa.string()) if labels else None
        one_set = labels is not None and columns.labels is None
        self._node_names = answer_names(labels) if one_set else []
        self._nodes = pa.array(self._node_names, pa.string()) if one_set else None
        self._columns = columns
        self._options = options
        self._types = {"label": pa.string(), "score": pa.float32()}
        self._types |= {SEVERAL_COLUMN: TOP} if options.several else {}
        self._types |= {"top": TOP} if options.top_k else {}
        self._types |= {"scores": SCORES} if options.return_scores else {}
        self._types |= {"where": WHERE} if options.long_text == "chunk" else {}
        self._types |= {"none_score": pa.float32()} if options.none_of_these else {}
        why = WHY if exemplars is None else WHY_OF_ROWS
        self._types |= {"why": why} if options.explain else {}
        self._types |= {PATH_COLUMN: TOP} if _has_path(options, labels) else {}
        self._reads_names = options.several or options.threshold is not None
        if one_set:
            predictor.warm_up(labels)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Rows in = rows out, in the same order: id (by its own name), the columns kept (one
        that is called as ours are is `input_<name>`), label, score, labels in a mode in which they
        may be several, path of a tree, top, scores and where as far as asked for, truncated,
        error, place."""
        errors = Errors.of(block["error"])
        vectors_GD = self._check(block, errors)
        asked_N = errors.good()
        truncated_N = block["truncated"].to_numpy().copy()
        answers = {name: pa.nulls(len(block), kind) for name, kind in self._types.items()}
        if asked_N.any():
            labels, names = self._labels, self._names
            if self._columns.labels is not None:
                labels, names = row_labels(block["labels"], asked_N, self._known)
            asked = labels, self._options.scoring
            if vectors_GD is not None:
                found_G = self._predictor.answer_vectors(vectors_GD, *asked)
            else:
                texts_G = block["text"].filter(pa.array(asked_N)).combine_chunks()
                found_G = self._predictor.answer_texts(texts_G, *asked)
                truncated_N[asked_N] = found_G.truncated_G
            errors.mark_found(asked_N, found_G.errors_G)
            # Where each row stands among those that were asked; null gives a row without answer.
            place_N = pa.array(np.cumsum(asked_N) - 1, mask=~errors.good())
            answers_G = self._answers(
                self._with_rows(found_G.answers, block, asked_N, vectors_GD), names
            )
            answers = {name: answers_G[name].take(place_N) for name in answers}
        rest = {
            "truncated": pa.array(truncated_N),
            "error": pa.array(errors.codes_N, pa.string()),
            "place": block["place"],
        }
        id_name = self._columns.id_name
        kept = kept_columns(block, (id_name, *own_columns(self._options, self._labels)))
        return pa.table({id_name: block["id"]} | kept | answers | rest)

    def _check(self, block: pa.Table, errors: Errors) -> Vectors | None:
        """Mark what can be seen of a row before it is answered; the vectors of the good rows, or
        None where they are texts."""
        if self._columns.id is not None:
            check_ids(block["id"], errors)
        if self._columns.labels is not None:
            check_labels(block["labels"], errors)
        if self._columns.embedding is not None:
            vectors_GD = check_vectors(block["embedding"], self._predictor.dimension, errors)
            return check_chunks(block, errors) if self._columns.chunks else vectors_GD
        check_texts(block["text"], errors)
        return None

    def _with_rows(
        self, answers: Answers, block: pa.Table, asked_N: np.ndarray, vectors_GD: Vectors | None
    ) -> Answers:
        """The answers with rows of the corpus among their reasons, where there are any."""
        if self._exemplars is None or answers.nearest_N is None or vectors_GD is None:
            return answers
        assert isinstance(vectors_GD, np.ndarray)
        assert self._names is not None
        best_G = answers.top_NT[:, 0]
        labels_G = self._names.take(pa.array(best_G, mask=best_G < 0)).to_pylist()
        ids_G = block["id"].filter(pa.array(asked_N)).to_pylist()
        nearest = self._exemplars.beside(answers.nearest_N, labels_G, ids_G, vectors_GD)
        return replace(answers, nearest_N=nearest)

    def _answers(self, answers: Answers, names: pa.Array) -> dict[str, pa.Array]:
        """The columns `_types` for the rows that were asked for. The `names` are the user's own, of
        the one set or row after row."""
        one_set = self._columns.labels is None
        first_G = np.zeros(len(answers), np.int64) if one_set else answers.offsets[:-1]
        # A row that got an error has no best label; what stands there is not read.
        asked = names.to_pylist() if self._reads_names else ()
        decided = decide(answers, self._options, asked, self._node_names)
        label_G, nodes = decided.label_N, names if self._nodes is None else self._nodes
        found = {
            "label": nodes.take(pa.array(first_G + label_G, mask=label_G < 0)),
            "score": pa.array(decided.score_N, pa.float32()),
        }
        if decided.lists is not None:
            found[SEVERAL_COLUMN] = _several(decided.lists, names, first_G)
        if self._options.top_k:
            found["top"] = _top(answers, names, first_G, self._options.top_k)
        if PATH_COLUMN in self._types:
            found[PATH_COLUMN] = _path(answers, nodes)
        if decided.none_N is not None:
            found["none_score"] = pa.array(decided.none_N, pa.float32())
        if answers.nearest_N is not None:
            found["why"] = _why(answers, answers.nearest_N, names, first_G, self._types["why"])
        if self._options.return_scores:
            if one_set:
                names = names.take(pa.array(np.tile(np.arange(len(names)), len(answers))))
            offsets, scores_M = pa.array(answers.offsets, pa.int32()), answers.scores_M
            found["scores"] = pa.MapArray.from_arrays(offsets, names, pa.array(scores_M))
        if answers.where_N2 is not None:
            found["where"] = _where(answers.where_N2)
        return found


def _where(where_N2: np.ndarray) -> pa.Array:
    none_N = pa.array(where_N2[:, 0] < 0)
    ends = [pa.array(one_N, pa.int32()) for one_N in where_N2.T]
    return pa.StructArray.from_arrays(ends, fields=list(WHERE), mask=none_N)


def _has_path(options: AnswerOptions, labels: Any) -> bool:
    return tree_of(labels) is not None and options.mode == "single"


def own_columns(options: AnswerOptions, labels: Any = None) -> tuple[str, ...]:
    """Of an output with such answers, of one label set for all rows, beside the ids."""
    more = [SEVERAL_COLUMN] if options.several else []
    more += ["none_score"] if options.none_of_these else []
    more += ["why"] if options.explain else []
    more += [PATH_COLUMN] if _has_path(options, labels) else []
    return (*OWN_COLUMNS, *more)


def _several(lists: LabelLists, names: pa.Array, first_G: np.ndarray) -> pa.Array:
    counts_G = np.diff(lists.offsets)
    labels = names.take(pa.array(np.repeat(first_G, counts_G) + lists.labels_S))
    return _pairs(labels, lists.scores_S, counts_G)


def _pairs(labels: pa.Array, scores_S: np.ndarray, counts_G: np.ndarray) -> pa.Array:
    """Lists of labels with their scores, so many a row."""
    pairs = [labels, pa.array(scores_S, pa.float32())]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts_G)]), pa.int32())
    fields = ["label", "score"]
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(pairs, fields))


def _why(
    answers: Answers,
    nearest_G: list[tuple[Example, ...]],
    names: pa.Array,
    first_G: np.ndarray,
    kind: pa.StructType,
) -> pa.Array:
    nearest = [[vars(one) for one in examples] for examples in nearest_G]
    other_G = np.full(len(answers), -1)
    scores_G = np.full(len(answers), np.nan, np.float32)
    if answers.top_NT.shape[1] > 1:
        other_G, scores_G = answers.top_NT[:, 1], answers.top_scores_NT[:, 1]
    none_G = other_G < 0
    labels = names.take(pa.array(first_G + other_G, mask=none_G))
    parts = [labels, pa.array(scores_G, pa.float32(), mask=none_G)]
    others = pa.StructArray.from_arrays(parts, fields=list(TOP.value_type), mask=pa.array(none_G))
    near = pa.array(nearest, kind.field("nearest").type)
    return pa.StructArray.from_arrays([near, others], fields=list(kind))


def _path(answers: Answers, nodes: pa.Array) -> pa.Array:
    """The most probable child at each level with its probability, from the top."""
    node_GH, scores_GH = answers.path_NH, answers.path_scores_NH
    assert node_GH is not None
    assert scores_GH is not None
    there_GH = node_GH >= 0
    labels = nodes.take(pa.array(node_GH[there_GH]))
    return _pairs(labels, scores_GH[there_GH], there_GH.sum(axis=1))


def _top(answers: Answers, names: pa.Array, first_G: np.ndarray, top_k: int) -> pa.Array:
    there_GT = answers.top_NT[:, :top_k] >= 0
    place_GT = first_G[:, None] + answers.top_NT[:, :top_k]
    labels = names.take(pa.array(place_GT[there_GT]))
    scores_S = answers.top_scores_NT[:, :top_k][there_GT]
    return _pairs(labels, scores_S, there_GT.sum(axis=1))
