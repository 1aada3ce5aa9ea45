"""The wire: what requests, answers and errors look like. The one place that says so, for the
gateway, the client and the OpenAPI document.

Requests are pydantic models. Answers with a row for each text are typed dictionaries, which the
gateway writes in half the time of models.

Shapes: D the embedder's dimension.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from sce.client.label_forms import (
    CLASSIFY_EXAMPLES,
    CLOSED,
    LabelSetForm,
    LabelSetsForm,
    Text,
    Texts,
    default,
)
from sce.client.reasons import Reasons, TopLabel, from_why, label_pairs, to_why
from sce.model.answers import Prediction
from sce.model.options import LongText, Mode, Pooling, Threshold

Vector = Annotated[
    Annotated[list[float], Field(fail_fast=True)] | StrictStr,
    Field(description="Numbers, or base64 of little-endian float32."),
]


class Wire(BaseModel):
    """Unknown fields are refused: a setting with a typing error must not pass for none."""

    model_config = CLOSED


def _or(default: Any) -> AfterValidator:
    """Null is "not given", as in every other field: the default stands for it."""
    return AfterValidator(lambda value: default if value is None else value)


class ClassifyRequest(Wire):
    """`POST /v1/classify`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": CLASSIFY_EXAMPLES})

    model: StrictStr | None = Field(None, description="One of `/v1/models`; default: the first.")
    texts: Text | Texts | None = None
    embeddings: Annotated[list[Vector], Field(fail_fast=True)] | None = Field(
        None, description="Instead of texts: unit vectors of the model's embedder."
    )
    labels: LabelSetsForm | None = Field(
        None,
        description="Names, `{name: description}`, objects; one such list a text; or a tree, nested"
        ' or as `{"tree": ["billing/refund", ...]}`.',
    )
    candidate_labels: LabelSetsForm | None = Field(None, description="Another name of `labels`.")
    label_set: StrictStr | None = Field(
        None,
        description="Instead of labels: one of `/v1/label_sets`. Without `model`, the first model "
        "that has it answers.",
    )
    threshold: Threshold | None = Field(
        None,
        description="Below this probability a label is not answered; the score stays. One for all "
        "labels, or `{label: threshold}`; by default 0.5 in mode multi, else none.",
    )
    mode: Annotated[Mode | None, _or("single")] = Field(
        "single", description="multi: any number of labels may be right, see `labels`."
    )
    at_least: Annotated[int, Field(ge=0, strict=True)] | None = Field(
        None, description="In mode multi: labels to answer even below their thresholds."
    )
    at_most: Annotated[int, Field(ge=1, strict=True)] | None = Field(
        None, description="In mode multi: no more labels than this, the best ones."
    )
    contrast_labels: Annotated[list[StrictStr], Field(max_length=256)] | None = Field(
        None,
        description="In mode multi: names that each label is held against in place of the others, "
        "so that its probability does not depend on which others are given.",
    )
    top_k: int | None = Field(None, ge=1, strict=True, description="Also the best labels.")
    return_scores: Annotated[StrictBool | None, _or(False)] = Field(
        False, description="Also every label's probability."
    )
    truncate: Annotated[StrictBool | None, _or(True)] = Field(
        True,
        description="Cut a text that is longer than the embedder reads (`truncated` says so); "
        "false: such a text gets the error `text_too_long`.",
    )
    long_text: Annotated[LongText | None, _or("truncate")] = Field(
        "truncate",
        description="`chunk`: read every text whole, in chunks of sentences; `where` says in which "
        "the label was found.",
    )
    pooling: Pooling | None = Field(
        None, description="How a text of several chunks is answered; default: `vector`."
    )
    none_of_these: Annotated[StrictBool | None, _or(False)] = Field(
        False,
        description="Also `none_score`, the probability that no label fits; `label` is null where "
        "that is more likely than the best label.",
    )
    none_share: float | None = Field(
        None, gt=0, lt=1, description="Of texts that no label fits, as far as known. Default: 0.1."
    )
    none_threshold: float | None = Field(
        None, ge=0, le=1, description="`label` is null where `none_score` is above it instead."
    )
    coverage_cut: float | None = Field(
        None, ge=0, le=1, description="Also `labels`: all of at least this probability."
    )
    explain: Annotated[StrictBool | None, _or(False)] = Field(
        False, description="Also `why`: the label's nearest examples, and the next best label."
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> ClassifyRequest:
        if (self.texts is None) == (self.embeddings is None):
            raise ValueError("give either texts or embeddings")
        given = [self.labels, self.candidate_labels, self.label_set]
        if sum(one is not None for one in given) != 1:
            raise ValueError("give exactly one of labels, candidate_labels and label_set")
        if self.pooling is not None and self.long_text != "chunk":
            raise ValueError("pooling is of chunks: it goes with long_text 'chunk'")
        if self.long_text == "chunk" and self.texts is None:
            raise ValueError("long_text is of texts, and embeddings are given")
        return self


class EmbeddingsRequest(Wire):
    """`POST /v1/embeddings`, in the shape of OpenAI's."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"input": ["The parcel never came.", "Great shop!"]}]},
    )

    input: Text | Texts
    model: StrictStr | None = None
    encoding_format: Annotated[Literal["float", "base64"] | None, _or("float")] = "float"
    truncate: Annotated[StrictBool | None, _or(True)] = True
    dimensions: int | None = Field(None, description="Only the embedder's own number.")
    user: StrictStr | None = Field(None, description="Accepted and not used.")


@with_config(CLOSED)
class Where(TypedDict):
    """A part of a text, in Unicode characters."""

    start: int
    end: int


@with_config(CLOSED)
class Classification(TypedDict):
    """The answer for one text."""

    object: NotRequired[Annotated[Literal["classification"], default("classification")]]
    index: int
    label: Annotated[
        str | None,
        Field(
            description="Null below the threshold, or with an error. In a tree the deepest node "
            "that is not below, as its path."
        ),
    ]
    score: Annotated[
        float | None,
        Field(
            description="Calibrated probability of the best label: that it is the one right label "
            "among those given; in mode multi that it is right, whatever the others are."
        ),
    ]
    labels: NotRequired[
        Annotated[
            list[TopLabel] | None,
            default(None, "In mode multi: all labels that are answered, best first."),
        ]
    ]
    scores: Annotated[dict[str, float] | None, Field(description="In the order of the labels.")]
    top: Annotated[list[TopLabel] | None, Field(description="Best first.")]
    path: NotRequired[
        Annotated[
            list[TopLabel] | None,
            default(None, "In a tree: the most probable child at each level, from the top."),
        ]
    ]
    truncated: bool
    where: NotRequired[
        Annotated[
            Where | None,
            default(None, "With `long_text: chunk`: the part in which the label was found."),
        ]
    ]
    none_score: NotRequired[
        Annotated[float | None, default(None, "Probability that no label fits.")]
    ]
    why: NotRequired[Annotated[Reasons | None, default(None, "With `explain`.")]]
    error: Annotated[
        str | None,
        Field(
            description="Why this text has no answer: text_empty, text_not_unicode, text_too_long, "
            "embedding_wrong_size, embedding_not_finite, embedding_not_unit, embedding_not_numbers."
        ),
    ]


@with_config(CLOSED)
class Usage(TypedDict):
    prompt_tokens: Annotated[int, Field(description="Of the texts, as the embedder counts them.")]
    total_tokens: Annotated[int, Field(description="With those of the labels' texts.")]
    embedded_texts: Annotated[
        int, Field(description="Texts and label texts that were embedded anew.")
    ]
    cached_texts: Annotated[int, Field(description="Of which the vectors were known.")]
    label_tokens: NotRequired[
        Annotated[int, default(0, "Read by the encoder: labels + 1 for each text.")]
    ]


@with_config(CLOSED)
class ClassifyResponse(TypedDict):
    id: str
    object: NotRequired[Annotated[Literal["list"], default("list")]]
    created: Annotated[int, Field(description="Seconds since 1970.")]
    model: str
    data: list[Classification]
    usage: Usage


@with_config(CLOSED)
class Embedding(TypedDict):
    object: NotRequired[Annotated[Literal["embedding"], default("embedding")]]
    index: int
    embedding: list[float] | str
    truncated: bool


@with_config(CLOSED)
class EmbeddingsResponse(TypedDict):
    object: NotRequired[Annotated[Literal["list"], default("list")]]
    model: str
    data: list[Embedding]
    usage: Usage


def from_prediction(index: int, found: Prediction) -> Classification:
    """A row as it is sent."""
    return {
        "object": "classification",
        "index": index,
        "label": found.label,
        "score": found.score,
        "scores": found.scores,
        "top": label_pairs(found.top),
        "path": label_pairs(found.path),
        "truncated": found.truncated,
        "where": None if found.where is None else {"start": found.where[0], "end": found.where[1]},
        "error": found.error,
    } | _as_asked(found)  # type: ignore[return-value]


def _as_asked(found: Prediction) -> dict[str, Any]:
    """What stands in a row where it was asked for."""
    more: dict[str, Any] = {"labels": label_pairs(found.labels), "none_score": found.none_score}
    more["why"] = None if found.why is None else from_why(found.why)
    return {name: value for name, value in more.items() if value is not None}


def _from_pairs(sent: list[TopLabel] | None) -> list[tuple[str, float]] | None:
    return None if sent is None else [(one["label"], one["score"]) for one in sent]


def to_prediction(row: Classification) -> Prediction:
    """Inverse of `from_prediction`. Raises `ValueError` where neither score nor error is given."""
    if row["error"] is None and row["score"] is None:
        raise ValueError("a row without a score and without an error")
    where, why = row.get("where"), row.get("why")
    return Prediction(
        label=row["label"],
        score=row["score"],
        scores=row["scores"],
        top=_from_pairs(row["top"]),
        truncated=row["truncated"],
        error=row["error"],
        where=None if where is None else (where["start"], where["end"]),
        path=_from_pairs(row.get("path")),
        labels=_from_pairs(row.get("labels")),
        none_score=row.get("none_score"),
        why=None if why is None else to_why(why),
    )


def encode_vectors(vectors_ND: np.ndarray) -> Iterator[str]:
    """Each row in base64 of little-endian float32."""
    little = np.ascontiguousarray(vectors_ND, "<f4")
    return (base64.b64encode(vector_D.tobytes()).decode() for vector_D in little)


def decode_vector(text: str) -> np.ndarray:
    """Inverse of `encode_vectors`: float32 [D]. Raises `ValueError` where it is none."""
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")


METADATA_FORM = (
    "an object of at most 16 keys, of up to 64 characters each, with texts of up to 512 characters"
)
"""OpenAI's bounds: it comes back in every listing."""
Metadata = Annotated[
    dict[Annotated[StrictStr, Field(max_length=64)], Annotated[StrictStr, Field(max_length=512)]],
    Field(max_length=16),
]
Place = Annotated[StrictStr, Field(max_length=4096)]
"""A path or URI; no file system takes a longer one."""


class BatchRequest(Wire):
    """`POST /v1/batches`: a bulk job of `jobs/classify.py`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "input": "/data/tickets/",
                    "output": "/data/answers/week1",
                    "labels": ["late delivery", "billing", "praise"],
                }
            ]
        },
    )

    input: Place = Field(description="Below one of the server's `input_roots`.")
    output: Place = Field(description="Below one of the server's `output_roots`.")
    labels: LabelSetForm | None = None
    labels_column: StrictStr | None = Field(None, description="A column with one list a row.")
    model: StrictStr | None = None
    text_column: Annotated[StrictStr | None, _or("text")] = "text"
    id_column: StrictStr | None = None
    keep_columns: Annotated[list[StrictStr] | None, _or([])] = []
    threshold: Threshold | None = None
    mode: Annotated[Mode | None, _or("single")] = "single"
    at_least: Annotated[int, Field(ge=0, strict=True)] | None = None
    at_most: Annotated[int, Field(ge=1, strict=True)] | None = None
    contrast_labels: Annotated[list[StrictStr], Field(max_length=256)] | None = None
    top_k: int | None = Field(None, ge=1, strict=True)
    return_scores: Annotated[StrictBool | None, _or(False)] = False
    long_text: Annotated[LongText | None, _or("truncate")] = "truncate"
    pooling: Pooling | None = None
    none_of_these: Annotated[StrictBool | None, _or(False)] = False
    none_share: float | None = Field(None, gt=0, lt=1)
    none_threshold: float | None = Field(None, ge=0, le=1)
    coverage_cut: float | None = Field(None, ge=0, le=1)
    explain: Annotated[StrictBool | None, _or(False)] = False
    output_format: Annotated[Literal["parquet", "jsonl", "csv"] | None, _or("parquet")] = "parquet"
    encoding: StrictStr | None = Field(None, description="Of text files; found out by default.")
    delimiter: StrictStr | None = Field(None, description="Of a CSV; found out by default.")
    max_errors: StrictStr | None = Field(None, description="A count (100) or a share (1%).")
    metadata: Annotated[Metadata | None, _or({})] = Field({}, description=METADATA_FORM)

    @model_validator(mode="after")
    def _labels(self) -> BatchRequest:
        if (self.labels is None) == (self.labels_column is None):
            raise ValueError("give either labels or labels_column")
        return self


class RequestCounts(Wire):
    total: int | None = None
    completed: int = 0
    failed: int = Field(0, description="Rows with an error.")


class Batch(Wire):
    id: str
    object: Literal["batch"] = "batch"
    status: Literal["in_progress", "completed", "failed", "cancelling", "cancelled"]
    model: str
    input: str
    output: str
    created_at: int
    completed_at: int | None = None
    request_counts: RequestCounts
    error: str | None = None
    metadata: dict[str, str] = {}


class ErrorBody(Wire):
    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "limit_error",
        "overloaded_error",
        "server_error",
    ]
    param: str | None = Field(description="The field that is wrong, or the limit exceeded.")
    code: str


class ErrorResponse(Wire):
    error: ErrorBody
