"""`Client`: an endpoint's answers in the form of `Predictor`'s.

Any number of rows is cut into requests that the server's limits allow, and these are sent some at
a time. An overloaded server, or one that is away, is asked again until patience ends.

Shapes: N rows, D the embedder's dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np
from pydantic import TypeAdapter

from sce.client.connection import Connection
from sce.client.packing import PackedRow, Rows, to_json
from sce.client.sending import Sender
from sce.client.served import EndpointInfo, LabelSetList, RequestLimits, ServedLabelSet, ServedModel
from sce.client.wire import (
    ClassifyResponse,
    EmbeddingsResponse,
    decode_vector,
    encode_vectors,
    to_prediction,
)
from sce.embedding.row_checks import (
    as_texts,
    as_vectors,
    bad_vectors,
    check_texts,
    is_numeric_array,
    refuse_rows,
    row_refused,
    text_errors,
)
from sce.errors import ConfigError, InputError
from sce.model.answers import Prediction
from sce.model.options import AnswerOptions, EvidenceOptions, LongText, Mode, Pooling

_CLASSIFIED = TypeAdapter(ClassifyResponse)
_EMBEDDED = TypeAdapter(EmbeddingsResponse)


@dataclass(frozen=True)
class EmbeddedTexts:
    """Vectors of texts.

    Attributes:
        vectors: float32 [N, D], unit norm.
        truncated: bool [N], the text was longer than the embedder reads.
    """

    vectors: np.ndarray
    truncated: np.ndarray


class Client:
    """Asks an endpoint. Safe to use from several threads; each call has its own requests.

    Args:
        url: the server's: `http://host:8000`, with the prefix of its routes where it has one.
        token: bearer token, where the server wants one.
        model: one of the server's models; None for its default.
        timeout: seconds that one request may take, that of the server being less.
        patience_seconds: how long one that gets no answer (overloaded, restarting, unreachable)
            is repeated while no other of this client gets one either.
        concurrency: requests of one call at a time.

    Raises:
        InputError: `url` is none.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        model: str | None = None,
        timeout: float = 120.0,
        patience_seconds: float = 30.0,
        concurrency: int = 4,
    ) -> None:
        self.model = model
        self._connection = Connection(
            url, token or "", timeout, patience_seconds, max(16, concurrency)
        )
        self._sender = Sender(self._connection, max(1, concurrency))
        self._info: EndpointInfo | None = None

    @property
    def url(self) -> str:
        """The server's, without a slash at its end."""
        return self._connection.url

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._connection.close()

    def info(self) -> EndpointInfo:
        """What the server has and allows, as of now.

        Raises:
            EndpointUnavailable, EndpointError, NotAuthorised: see there.
        """
        self._info = self._connection.ask("/info", EndpointInfo.model_validate_json)
        return self._info

    def served_model(self, info: EndpointInfo | None = None) -> ServedModel:
        """The model that answers this client.

        Raises:
            ConfigError: the server has none of the name; says which it has.
        """
        info = info or self.info()
        name = info.default_model if self.model is None else self.model
        if name not in info.models:
            raise ConfigError(
                f"{self.url} has no model {name!r}. It has: {', '.join(info.models)}."
            )
        return info.models[name]

    def label_sets(self) -> dict[str, ServedLabelSet]:
        """The label sets that the server has, by name, as of now; raises as `info`."""
        found = self._connection.ask("/v1/label_sets", LabelSetList.model_validate_json)
        return {label_set.name: label_set for label_set in found.data}

    def predict(
        self,
        texts: str | Sequence[str] | np.ndarray | None = None,
        labels: Any = None,
        *,
        label_set: str | None = None,
        embeddings: np.ndarray | None = None,
        threshold: float | Mapping[str, float] | None = None,
        top_k: int | None = None,
        return_scores: bool = False,
        mode: Mode = "single",
        at_least: int = 0,
        at_most: int | None = None,
        contrast_labels: Sequence[str] = (),
        candidate_labels: Any = None,
        errors: Literal["keep", "raise"] = "keep",
        long_text: LongText = "truncate",
        pooling: Pooling | None = None,
        **evidence: Unpack[EvidenceOptions],
    ) -> list[Prediction]:
        """`Predictor.predict`, with the same arguments and the same answers.

        Args:
            label_set: in place of labels, the name of a label set that the server has.

        Raises:
            LabelError, InputError: as there.
            RequestRefused, LimitExceeded, NotAuthorised: what is asked is not allowed there.
            EndpointUnavailable, EndpointError: nobody answers.
        """
        labels = candidate_labels if labels is None else labels
        if (texts is None) == (embeddings is None):
            raise InputError("give either texts or embeddings.")
        if (labels is None) == (label_set is None):
            raise InputError("give either labels or label_set.")
        options = AnswerOptions(
            threshold,
            top_k,
            return_scores,
            long_text,
            pooling,
            mode=mode,
            at_least=at_least,
            at_most=at_most,
            contrast_labels=contrast_labels,
            **evidence,
        )
        if is_numeric_array(texts):
            texts, embeddings = None, texts
        items: list[Any]
        if texts is not None:
            field, items = "texts", as_texts(texts)
            refused = text_errors(items)
        else:
            options.refuse_long_text("embeddings are given")
            field, queries_ND = "embeddings", as_vectors(embeddings, self._dimension(label_set))
            refused = bad_vectors(queries_ND)
            items = list(encode_vectors(queries_ND))
        refuse_rows(field, refused, errors)
        settings = {"return_scores": return_scores} | options.given()
        settings |= {} if label_set is None else {"label_set": label_set}
        # What is refused is not sent; its place is kept for labels that are given row by row.
        sent = ["" if i in refused else item for i, item in enumerate(items)]
        rows = self._rows("/v1/classify", field, sent, settings)
        if label_set is None:
            rows = rows.with_labels(labels)
        if not items:
            return []
        if texts is not None:
            refused |= dict.fromkeys(rows.too_long(self._limits()), "text_too_long")
        answered = iter(self._sender.answer(rows.without(refused), self._limits(), _classified))
        found = [
            Prediction.refused(refused[i]) if i in refused else next(answered)
            for i in range(len(items))
        ]
        refuse_rows(field, {i: one.error for i, one in enumerate(found) if one.error}, errors)
        return found

    def embed(self, texts: Sequence[str]) -> EmbeddedTexts:
        """`TextEmbedder.embed` but for the token counts.

        Raises:
            DataError: a text is empty, not a text or too long for a request; names its position.
            RequestRefused, ...: as `predict`.
        """
        texts = as_texts(texts)
        check_texts(texts)
        rows = self._rows("/v1/embeddings", "input", texts, {"encoding_format": "base64"})
        for row in rows.too_long(self._limits()):
            raise row_refused("texts", row, "text_too_long")
        found = self._sender.answer(rows, self._limits(), _embedded)
        dimension = self.served_model(self._info).dimension
        vectors_ND = np.empty((len(found), dimension), np.float32)
        for row, (vector_D, _) in enumerate(found):
            vectors_ND[row] = vector_D
        return EmbeddedTexts(vectors_ND, np.array([cut for _, cut in found], bool))

    def _rows(self, path: str, field: str, items: Sequence[Any], settings: dict[str, Any]) -> Rows:
        settings |= {} if self.model is None else {"model": self.model}
        return Rows(path, field, [PackedRow(to_json(item)) for item in items], settings)

    def _limits(self) -> RequestLimits:
        return (self._info or self.info()).limits

    def _dimension(self, label_set: str | None) -> int:
        """D of the model that will answer."""
        info = self._info or self.info()
        if label_set is not None and self.model is None:
            for model in info.models.values():
                if label_set in model.label_sets:
                    return model.dimension
        return self.served_model(info).dimension


def _classified(content: bytes, rows: int) -> list[Prediction]:
    return [to_prediction(row) for row in _data(_CLASSIFIED, content, rows)]


def _embedded(content: bytes, rows: int) -> list[tuple[np.ndarray, bool]]:
    data = _data(_EMBEDDED, content, rows)
    return [(decode_vector(str(row["embedding"])), row["truncated"]) for row in data]


def _data(kind: TypeAdapter[Any], content: bytes, rows: int) -> list[Any]:
    found: list[Any] = kind.validate_json(content, extra="ignore")["data"]
    if [row["index"] for row in found] != list(range(rows)):
        raise ValueError(f"{len(found)} rows in another order, or not {rows}")
    return found
