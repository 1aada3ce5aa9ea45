"""Files of requests and their batches, in the shapes of OpenAI's interface: `/v1/files`, and what
`/v1/batches` takes and tells of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictStr

from sce.client.wire import METADATA_FORM, Batch, Metadata, Wire

FINAL = ("completed", "failed", "cancelled")
Endpoint = Literal["/v1/classify", "/v1/embeddings"]
"""Routes that a file of requests may ask."""


class UploadedFile(Wire):
    """A file that was uploaded, or that a batch wrote."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since 1970.")
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class UploadedFileList(Wire):
    """Files of the token that asks, the newest first."""

    object: Literal["list"] = "list"
    data: list[UploadedFile]
    has_more: Literal[False] = False


class DeletedFile(Wire):
    """Told of a file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FileBatchRequest(Wire):
    """`POST /v1/batches` with `input_file_id`: answers every request of an uploaded file."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "input_file_id": "file-0123456789abcdef0123456789abcdef",
                    "endpoint": "/v1/classify",
                    "completion_window": "24h",
                }
            ]
        },
    )

    input_file_id: StrictStr
    endpoint: Endpoint = Field(description="The route that every line of the file asks.")
    completion_window: Literal["24h"] | None = Field(None, description="Accepted and not used.")
    metadata: Metadata | None = Field(None, description=METADATA_FORM)


class LineProblem(Wire):
    """Why a line of a file is no request."""

    code: str
    line: int | None = Field(None, description="From 1.")
    message: str
    param: str | None = None


class LineProblems(Wire):
    """The first problems of a file that no batch can work on."""

    object: Literal["list"] = "list"
    data: list[LineProblem]


class LineCounts(Wire):
    """Requests of a file."""

    total: int = 0
    completed: int = 0
    failed: int = Field(0, description="Answered by an error, which the error file tells.")


class FileBatch(Wire):
    """A batch that answers an uploaded file."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str = "24h"
    status: Literal["validating", "in_progress", "completed", "failed", "cancelling", "cancelled"]
    errors: LineProblems | None = None
    output_file_id: str | None = Field(None, description="Answers, a line a request.")
    error_file_id: str | None = Field(None, description="Requests that an error answered.")
    created_at: int
    in_progress_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelled_at: int | None = None
    request_counts: LineCounts = LineCounts()
    metadata: dict[str, str] = {}


class AnyBatchList(Wire):
    """Batches of both kinds, the newest of each first."""

    object: Literal["list"] = "list"
    data: list[Batch | FileBatch]
    has_more: Literal[False] = False


class LineRequest(Wire):
    """A line of a file of requests."""

    custom_id: Annotated[StrictStr, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: StrictStr
    body: dict[str, Any]
