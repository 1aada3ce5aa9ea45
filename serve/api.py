"""The wire: what requests and answers look like, and every error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, model_validator

Text = StrictStr
Texts = Annotated[list[Text], Field(fail_fast=True)]
Vector = Annotated[
    Annotated[list[float], Field(fail_fast=True)] | StrictStr,
    Field(description="Numbers, or base64 of little-endian float32."),
]


class Wire(BaseModel):
    """Unknown fields are refused: a setting with a typing error must not pass for none."""

    model_config = ConfigDict(extra="forbid")


class LabelObject(Wire):
    """A label and what is known of it; all of it goes into its vector."""

    name: StrictStr
    description: StrictStr | None = None
    synonyms: Texts | None = None
    examples: Texts | None = Field(None, description="Texts that carry this label.")


LabelListForm = Annotated[list[StrictStr | LabelObject], Field(fail_fast=True)]
LabelSetForm = LabelListForm | dict[str, StrictStr]
"""Lists end at their first bad item (fail_fast): the errors of a million would fill the memory."""

CLASSIFY_EXAMPLES: list[Any] = [
    {
        "texts": ["The parcel never came.", "I was charged twice."],
        "labels": ["late delivery", "billing", "praise"],
        "threshold": 0.4,
        "return_scores": True,
    },
    {
        "texts": "Where is my box?",
        "labels": [
            {
                "name": "late delivery",
                "description": "the order came late or not at all",
                "synonyms": ["parcel not arrived"],
                "examples": ["Still waiting for my order"],
            },
            "billing",
        ],
    },
    {"texts": ["I was charged twice."], "labels": {"billing": "invoices, charges, refunds"}},
    {
        "texts": ["The parcel never came.", "Great shop!"],
        "labels": [["late delivery", "billing"], ["praise", "complaint"]],
        "top_k": 2,
    },
]


class ClassifyRequest(Wire):
    """`POST /v1/classify`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": CLASSIFY_EXAMPLES})

    model: StrictStr | None = Field(None, description="One of `/v1/models`; default: the first.")
    texts: Text | Texts | None = None
    embeddings: Annotated[list[Vector], Field(fail_fast=True)] | None = Field(
        None, description="Instead of texts: unit vectors of the model's embedder."
    )
    labels: LabelSetForm | Annotated[list[LabelListForm], Field(fail_fast=True)] | None = Field(
        None,
        description="Names, `{name: description}`, objects; or one such list a text.",
    )
    candidate_labels: (
        LabelSetForm | Annotated[list[LabelListForm], Field(fail_fast=True)] | None
    ) = Field(None, description="Another name of `labels`.")
    threshold: float | None = Field(
        None, ge=0, le=1, description="Below this probability `label` is null; the score stays."
    )
    top_k: int | None = Field(None, ge=1, strict=True, description="Also the best labels.")
    return_scores: StrictBool = Field(False, description="Also every label's probability.")
    truncate: StrictBool = Field(
        True,
        description="Cut a text that is longer than the embedder reads (`truncated` says so); "
        "false: such a text gets the error `text_too_long`.",
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> ClassifyRequest:
        if (self.texts is None) == (self.embeddings is None):
            raise ValueError("give either texts or embeddings")
        if (self.labels is None) == (self.candidate_labels is None):
            raise ValueError("labels are needed (under one of their names)")
        return self

    def label_form(self) -> Any:
        """The labels as plain lists, mappings and texts."""
        form = self.labels if self.labels is not None else self.candidate_labels
        return _plain(form)


class EmbeddingsRequest(Wire):
    """`POST /v1/embeddings`, in the shape of OpenAI's."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"input": ["The parcel never came.", "Great shop!"]}]},
    )

    input: Text | Texts
    model: StrictStr | None = None
    encoding_format: Literal["float", "base64"] = "float"
    truncate: StrictBool = True
    dimensions: int | None = Field(None, description="Only the embedder's own number.")
    user: StrictStr | None = Field(None, description="Accepted and not used.")


class TopLabel(Wire):
    label: str
    score: float


class Classification(Wire):
    """The answer for one text."""

    object: Literal["classification"] = "classification"
    index: int
    label: str | None = Field(description="Null below the threshold, or with an error.")
    score: float | None = Field(description="Calibrated probability of the best label.")
    scores: dict[str, float] | None = Field(description="In the order of the labels.")
    top: list[TopLabel] | None = Field(description="Best first.")
    truncated: bool
    error: str | None = Field(
        description="Why this text has no answer: text_empty, text_not_unicode, text_too_long, "
        "embedding_wrong_size, embedding_not_finite, embedding_not_unit, embedding_not_numbers."
    )


class Usage(Wire):
    prompt_tokens: int = Field(description="Of the texts, as the embedder counts them.")
    total_tokens: int = Field(description="With those of the labels' texts.")
    embedded_texts: int = Field(description="Texts and label texts that were embedded anew.")
    cached_texts: int = Field(description="Of which the vectors were known.")
    label_tokens: int = Field(0, description="Read by the encoder: labels + 1 for each text.")


class ClassifyResponse(Wire):
    id: str
    object: Literal["list"] = "list"
    created: int = Field(description="Seconds since 1970.")
    model: str
    data: list[Classification]
    usage: Usage


class Embedding(Wire):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    truncated: bool


class EmbeddingsResponse(Wire):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


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

    input: StrictStr = Field(description="Below one of the server's `input_roots`.")
    output: StrictStr = Field(description="Below one of the server's `output_roots`.")
    labels: LabelSetForm | None = None
    labels_column: StrictStr | None = Field(None, description="A column with one list a row.")
    model: StrictStr | None = None
    text_column: StrictStr = "text"
    id_column: StrictStr | None = None
    keep_columns: list[StrictStr] = []
    threshold: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=1, strict=True)
    return_scores: StrictBool = False
    output_format: Literal["parquet", "jsonl"] = "parquet"
    max_errors: StrictStr | None = Field(None, description="A count (100) or a share (1%).")
    metadata: dict[str, StrictStr] = Field({}, max_length=16)

    @model_validator(mode="after")
    def _labels(self) -> BatchRequest:
        if (self.labels is None) == (self.labels_column is None):
            raise ValueError("give either labels or labels_column")
        return self

    def label_form(self) -> Any:
        """The labels as plain lists, mappings and texts; None where they are in a column."""
        return _plain(self.labels)


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


class BatchList(Wire):
    object: Literal["list"] = "list"
    data: list[Batch]


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


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        retry_after: seconds.
        allow: methods of the route.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after: int | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after, self.allow = retry_after, allow

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        kinds |= {413: "limit_error", 429: "overloaded_error", 503: "overloaded_error"}
        kind = kinds.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        found |= {} if self.allow is None else {"Allow": self.allow}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def _plain(form: Any) -> Any:
    if isinstance(form, LabelObject):
        return form.model_dump(exclude_none=True)
    if isinstance(form, list):
        return [_plain(item) for item in form]
    return form
