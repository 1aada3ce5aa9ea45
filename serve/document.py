"""The OpenAPI document behind `/docs`: FastAPI's, with tokens, with the bodies that it does not
read itself, and with a title and a sentence for each schema."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from sce.client.wire import BatchRequest, ClassifyRequest, EmbeddingsRequest
from serve.file_forms import FileBatchRequest
from serve.middleware import OPEN_PATHS

BODIES = (ClassifyRequest, EmbeddingsRequest, BatchRequest, FileBatchRequest)
"""What routes read themselves."""
TAGS = [
    {"name": "Classify", "description": "Texts in, answers out, with labels of your own."},
    {"name": "Label sets", "description": "Labels that were fitted to a corpus."},
    {"name": "Files and batches", "description": "Much at a time, answered in the background."},
    {"name": "Server", "description": "Models, limits, health and metrics."},
]
TITLES = {
    "AboutModel": ("Model", "A model, in OpenAI's form."),
    "AboutModels": ("List of models", "The default first."),
    "AnyBatchList": ("List of batches", "The newest of each kind first."),
    "Batch": ("Bulk job", "A batch over files that the server reads itself."),
    "BatchRequest": ("Start a bulk job", "Over files that the server reads itself."),
    "Classification": ("Answer for one text", "A label and its probability, or an error."),
    "ClassifyRequest": ("Texts and labels to classify", "Texts or embeddings, and labels."),
    "ClassifyResponse": ("Answers, one a text", "In the order of the texts, errors included."),
    "DeletedFile": ("Removed file", "It is no more."),
    "Embedding": ("Vector of one text", "Of length 1; numbers, or base64 of them."),
    "EmbeddingsRequest": ("Texts to embed", "In OpenAI's form."),
    "EmbeddingsResponse": ("Vectors, one a text", "In the order of the texts."),
    "ErrorBody": ("What went wrong", "What, where and what is allowed."),
    "ErrorResponse": ("Error", "Whatever goes wrong has this form."),
    "FileBatch": ("Batch of a file", "Answers every request of an uploaded file."),
    "FileBatchRequest": ("Start a batch of a file", "Each line of the file is a request."),
    "Health": ("Health of the server", "Every model answers."),
    "LabelObject": ("Label", "A label and what is known of it; all of it counts."),
    "LabelSetDetails": ("Label set and its figures", "How it was fitted to its corpus."),
    "LabelSetList": ("List of label sets", "With the models that have each."),
    "Limits": ("Limits of the server", "How much may be asked, of one request and at a time."),
    "LineCounts": ("Counts of requests", "Of a file."),
    "LineProblem": ("Problem of a line", "Why it is no request."),
    "LineProblems": ("Problems of a file", "Why no batch can work on it."),
    "RequestCounts": ("Counts of rows", "Of a bulk job."),
    "ServedLabelSet": ("Label set", "Labels that were fitted to a corpus."),
    "ServerInfo": ("Models and limits", "What a client needs to know of the server."),
    "TopLabel": ("One of the best labels", "With its probability."),
    "UploadedFile": ("File", "That was uploaded, or that a batch wrote."),
    "UploadedFileList": ("List of files", "Of the token that asks."),
    "Usage": ("Usage of a request", "What was read and computed for an answer."),
    "Where": ("Part of a text", "In Unicode characters, from the first to before the end."),
    "NearExample": ("Near example", "A text that carries a label, and how near it is."),
    "Reasons": ("Why this label", "What a label rests on."),
}
"""Of each schema: what it is called, and what it is."""


def operation_name(route: APIRoute) -> str:
    """Generated clients call an operation so."""
    return route.name


def describe(app: FastAPI, found: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document, completed; made once."""
    schemas = found["components"]["schemas"]
    for kind in BODIES:
        own = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= own.pop("$defs", {}) | {kind.__name__: own}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for name, schema in schemas.items():
        schema["title"], schema["description"] = TITLES[name]
    found["tags"] = TAGS
    found["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, methods in found["paths"].items():
        for operation in methods.values():
            _name_answers(operation)
            _leave_out_fastapis(operation)
            if path not in OPEN_PATHS:
                operation["security"] = [{"bearer": []}, {}]
    app.openapi_schema = json.loads(json.dumps(found))
    return app.openapi_schema


def _name_answers(operation: dict[str, Any]) -> None:
    """An answer of several forms is called by what the operation does, not by its path."""
    for response in operation["responses"].values():
        for content in response.get("content", {}).values():
            if "title" in content.get("schema", {}):
                content["schema"]["title"] = f"Answer: {operation['summary']}"


def _leave_out_fastapis(operation: dict[str, Any]) -> None:
    """A refusal that FastAPI describes where a path has a name in it; no route here gives it."""
    schema = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
    if schema.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
        del operation["responses"]["422"]
