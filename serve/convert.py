"""From what a request says to what a model is asked, and from its answer to what is sent back.

Here every limit is checked. Shapes: N rows, D the embedder's dimension.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from sce.client.wire import (
    METADATA_FORM,
    BatchRequest,
    ClassifyRequest,
    ClassifyResponse,
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    Usage,
    Wire,
    decode_vector,
    encode_vectors,
    from_prediction,
)
from sce.errors import ROW_ERRORS, InputError, LabelError, clipped, quoted
from sce.labels import LabelSet, RaggedLabels, is_set_a_row
from sce.model.answers import Prediction
from sce.model.decisions import predictions
from sce.model.label_tree import LabelTree, answer_names, parse_sets, tree_of
from sce.model.options import AnswerOptions
from sce.model.tree_forms import FORMS as TREE_FORMS
from sce.model.tree_forms import is_tree
from sce.storage.documents import unique_keys
from serve.refusals import ApiError
from serve.settings import Limits
from serve.work import ModelAnswer, ModelRequest

LABELS_FORM = (
    "a list of names, a list of objects {name, description, synonyms, examples}, a mapping "
    "{name: description}, one such list for each text, or a tree: " + TREE_FORMS
)
TOO_LONG = "the text is longer than the embedder reads, and truncate is false"
FORMS = {
    "texts": "a text or a list of texts",
    "input": "a text or a list of texts",
    "embeddings": "a list with, for each row, a list of numbers or base64 of little-endian float32",
    "labels": LABELS_FORM,
    "candidate_labels": LABELS_FORM,
    "metadata": METADATA_FORM,
    "threshold": "a probability from 0 to 1, or one for each label: {label: probability}",
}
TOO_LONG_FORMS = ("too_long", "string_too_long")


def parse(kind: type[Any], body: bytes) -> Any:
    """A body as the wire type `kind`.

    Raises:
        ApiError: 400, it is no JSON; 422, it is not of that form.
    """
    try:
        found = kind.model_validate_json(body)
    except ValidationError as error:
        raise _malformed(kind, error) from None
    if any(isinstance(getattr(found, name, None), dict) for name in ("labels", "candidate_labels")):
        try:
            json.loads(body, object_pairs_hook=unique_keys)
        except LabelError as error:
            raise ApiError(422, "invalid_labels", f"labels: {error}", "labels") from None
    return found


def classify_request(
    request: ClassifyRequest, limits: Limits, dimension: int, set_labels: int = 0
) -> ModelRequest:
    """Check a request and give it the form that the model reads.

    Args:
        set_labels: how many labels `request.label_set` has.

    Raises:
        ApiError: 413, a limit is exceeded; 422, labels or embeddings are wrong.
    """
    param = "labels" if request.labels is not None else "candidate_labels"
    if request.texts is not None:
        texts = [request.texts] if isinstance(request.texts, str) else request.texts
        _check_rows(len(texts), "texts", limits)
        queries: list[str] | np.ndarray = texts
        errors: dict[int, str] = {}
    else:
        assert request.embeddings is not None
        _check_rows(len(request.embeddings), "embeddings", limits)
        queries, errors = _vectors(request.embeddings, dimension)
    rows = len(queries)
    options = answer_options(request)
    scoring = options.scoring
    labels: LabelSet | RaggedLabels | str
    if request.label_set is not None:
        labels, widest = request.label_set, set_labels
        # The encoder reads nothing, but what is sent back is bounded as for other labels.
        numbers = widest if scoring.every_score else min(scoring.top_k, widest)
        label_tokens, what = rows * (numbers + 1), "numbers of the answer (labels + 1 a text)"
    else:
        labels = check_labels(getattr(request, param), rows, param, limits)
        try:
            is_one = tree_of(labels) is not None
            options.check_labels([answer_names(labels)] if is_one else labels.names_by_row(rows))
        except InputError as error:
            raise refused_option(error) from None
        counts_N = labels.counts_by_row(rows)
        widest, label_tokens = int(counts_N.max(initial=0)), int(counts_N.sum()) + rows
        what = "label tokens (labels + 1 a text)"
    if label_tokens > limits.max_label_tokens:
        raise _over("max_label_tokens", label_tokens, limits, what)
    return ModelRequest(
        queries,
        labels,
        replace(scoring, top_k=min(scoring.top_k, max(1, widest))),
        bool(request.truncate),
        errors,
        set_labels,
        limits.max_label_tokens,
        limits.max_chunks,
    )


def answer_options(request: ClassifyRequest | BatchRequest) -> AnswerOptions:
    """What a request asks of its answer. Raises `ApiError`: 422, it cannot be had."""
    try:
        return AnswerOptions(
            request.threshold,
            request.top_k,
            bool(request.return_scores),
            request.long_text or "truncate",
            request.pooling,
            mode=request.mode or "single",
            at_least=request.at_least or 0,
            at_most=request.at_most,
            contrast_labels=tuple(request.contrast_labels or ()),
            none_of_these=bool(request.none_of_these),
            none_share=request.none_share,
            none_threshold=request.none_threshold,
            coverage_cut=request.coverage_cut,
            explain=bool(request.explain),
        )
    except InputError as error:
        raise refused_option(error) from None


def refused_option(error: InputError) -> ApiError:
    """What `AnswerOptions` does not allow; its message begins with the field."""
    field = str(error).partition(":")[0].partition(" ")[0].partition("[")[0]
    return ApiError(422, "invalid_value", str(error), field)


def embeddings_request(request: EmbeddingsRequest, limits: Limits, dimension: int) -> ModelRequest:
    """As `classify_request`."""
    texts = [request.input] if isinstance(request.input, str) else request.input
    _check_rows(len(texts), "input", limits)
    if request.dimensions not in (None, dimension):
        asked = clipped(str(request.dimensions))
        message = f"dimensions: {asked}, but this embedder has {dimension}."
        raise ApiError(422, "dimensions_not_supported", message, "dimensions")
    return ModelRequest(texts, None, truncate=bool(request.truncate))


def classify_response(
    request: ClassifyRequest, work: ModelRequest, answer: ModelAnswer, model: str
) -> ClassifyResponse:
    """The body of an answer to `work`, which `request` asked for."""
    rows = len(work.queries)
    if isinstance(work.labels, str):
        nodes = answer.names or []
        names = [nodes[: work.set_labels]] * rows
    else:
        assert work.labels is not None
        nodes = answer_names(work.labels)
        names = work.labels.names_by_row(rows)
    truncated, good = answer.truncated_N.tolist(), np.flatnonzero(answer.good_N).tolist()
    found: dict[int, Prediction] = {}
    if answer.answers is not None:
        sets, cut = [names[row] for row in good], [truncated[row] for row in good]
        answered = predictions(answer.answers, sets, answer_options(request), cut, nodes)
        found = dict(zip(good, answered, strict=True))
    return {
        "id": f"cls-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            from_prediction(row, found.get(row) or Prediction.refused(answer.errors[row]))
            for row in range(rows)
        ],
        "usage": _usage(answer),
    }


def check_chunks(answer: ModelAnswer, limits: Limits) -> None:
    """Raises `ApiError` 413: the texts have too many chunks together for so many labels."""
    if answer.too_many:
        what = "label tokens (labels + 1 a chunk)"
        raise _over("max_label_tokens", answer.too_many, limits, what)


def embeddings_response(
    request: EmbeddingsRequest, answer: ModelAnswer, model: str
) -> EmbeddingsResponse:
    """The body of an answer.

    Raises:
        ApiError: 422, a text has no vector; this answer has no place to say so for one alone.
    """
    for row, code in sorted(answer.errors.items()):
        message = TOO_LONG if code == "text_too_long" else ROW_ERRORS[code]
        raise ApiError(422, code, f"input[{row}]: {message}.", f"input[{row}]")
    assert answer.vectors_GD is not None
    coded = request.encoding_format == "base64"
    vectors: Iterable[Any] = (
        encode_vectors(answer.vectors_GD) if coded else answer.vectors_GD.tolist()
    )
    truncated = answer.truncated_N.tolist()
    data: list[Embedding] = [
        {"object": "embedding", "index": i, "embedding": vector, "truncated": truncated[i]}
        for i, vector in enumerate(vectors)
    ]
    return {"object": "list", "model": model, "data": data, "usage": _usage(answer)}


def _usage(answer: ModelAnswer) -> Usage:
    return {
        "prompt_tokens": answer.tokens,
        "total_tokens": answer.tokens + answer.label_tokens,
        "embedded_texts": answer.embedded,
        "cached_texts": answer.cached,
        "label_tokens": answer.label_tokens,
    }


def check_labels(form: Any, rows: int, param: str, limits: Limits) -> LabelSet | RaggedLabels:
    """Parse labels, checking in the order in which it is cheap to do so.

    Raises:
        ApiError: 413, a limit is exceeded; 422, they are no labels of so many rows.
    """
    ragged = is_set_a_row(form)
    if ragged and len(form) != rows:
        message = f"{param}: {len(form)} label sets for {rows} rows; give one set, or one a row."
        raise ApiError(422, "label_sets_mismatch", message, param)
    widest = max((len(labels) for labels in form if isinstance(labels, list)), default=0)
    widest = widest if ragged else 0 if is_tree(form) else len(form)
    if widest > limits.max_labels:
        raise _over("max_labels", widest, limits, "labels in one set")
    try:
        labels = parse_sets(form, param)
    except LabelError as error:
        raise ApiError(422, "invalid_labels", str(error), param) from None
    if isinstance(labels, LabelTree) and len(labels.answer_names) > limits.max_labels:
        raise _over("max_labels", len(labels.answer_names), limits, "nodes in a tree")
    texts = 0
    for i, label in enumerate(labels.labels):
        more = [label.description, *label.synonyms, *label.examples]
        texts += 1 + sum(map(bool, more))
        if len(label.name) > limits.max_label_chars:
            raise _over("max_label_chars", len(label.name), limits, f"characters in {param}[{i}]")
        longest = max(map(len, more))
        if longest > limits.max_label_info_chars:
            what = f"characters in what is said of {param}[{i}]"
            raise _over("max_label_info_chars", longest, limits, what)
    if texts > limits.max_label_texts:
        raise _over("max_label_texts", texts, limits, "names, descriptions, synonyms and examples")
    return labels


def _vectors(items: list[Any], dimension: int) -> tuple[np.ndarray, dict[int, str]]:
    """Float32 [N, D], and the errors of rows that are no vectors of D numbers."""
    vectors_ND, errors = np.zeros((len(items), dimension), np.float32), {}
    for row, item in enumerate(items):
        try:
            with np.errstate(over="ignore"):
                if isinstance(item, str):
                    vector = decode_vector(item)
                else:
                    vector = np.array(item, np.float64).astype(np.float32)
        except ValueError:
            errors[row] = "embedding_not_numbers"
            continue
        if len(vector) != dimension:
            errors[row] = "embedding_wrong_size"
            continue
        vectors_ND[row] = vector
    return vectors_ND, errors


def _check_rows(rows: int, param: str, limits: Limits) -> None:
    if rows > limits.max_texts:
        raise _over("max_texts", rows, limits, param)


def _over(limit: str, found: int, limits: Limits, what: str) -> ApiError:
    message = f"{found} {what}, but {limit} is {getattr(limits, limit)}."
    return ApiError(413, "limit_exceeded", message, limit)


NO_TOKEN_IDS = (
    "input: token ids; send texts, since this embedder has a tokenizer of its own (LangChain's "
    "OpenAIEmbeddings: check_embedding_ctx_length=False)."
)


def _token_ids(error: ValidationError) -> bool:
    """Whether the input is a list of numbers, or of lists of them."""
    found = error.errors(include_url=False)[0]["input"]
    while isinstance(found, list) and found:
        found = found[0]
    return isinstance(found, int) and not isinstance(found, bool)


def _malformed(kind: type[Wire], error: ValidationError) -> ApiError:
    """The first thing that is wrong, said for people."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"the body is no JSON: {first['msg']}")
    if not first["loc"]:
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "model_type":
            message = f"the body is a JSON object with the fields {', '.join(kind.model_fields)}"
        return ApiError(422, "invalid_request", f"{message}.")
    field = str(first["loc"][0])
    if kind is EmbeddingsRequest and field == "input" and _token_ids(error):
        return ApiError(422, "token_ids_not_offered", NO_TOKEN_IDS, "input")
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        message = f"{clipped(field)}: no such field. There are: {', '.join(kind.model_fields)}."
        return ApiError(422, "unknown_field", message, field)
    if field in FORMS:
        # One error for each form that it might have had: the deepest is of the form meant.
        deepest = max((e for e in errors if e["loc"][:1] == (field,)), key=lambda e: len(e["loc"]))
        place = "".join(f"[{p}]" for p in deepest["loc"][1:] if isinstance(p, int))
        what = "of a wrong form or type"
        if deepest["type"] == "extra_forbidden":
            what = f"unknown field {quoted(str(deepest['loc'][-1]))}"
        elif deepest["type"] in TOO_LONG_FORMS:
            what = deepest["msg"]
        message = f"{field}{place}: {what}. {field} is {FORMS[field]}."
        return ApiError(422, "invalid_type", message, field)
    return ApiError(422, "invalid_value", f"{field}: {first['msg']}.", field)
