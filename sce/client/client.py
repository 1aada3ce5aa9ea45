"""A client of the endpoint that answers as `Predictor` does; needs neither torch nor a model.

    client = Client("http://localhost:8000", token="...")
    client.predict(["The parcel never came."], ["late delivery", "billing"])

Any number of rows is cut into requests that the server's limits allow, and these are sent some at
a time. An overloaded server, or one that is away, is asked again until patience ends.

Shapes: N rows, D the embedder's dimension, T best labels of a row.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from email.utils import parsedate_to_datetime
from itertools import count, pairwise
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from requests.adapters import HTTPAdapter

from sce.bulk.answering import ServedModel
from sce.embedding.fingerprint import EmbedderFingerprint
from sce.embedding.row_checks import check_texts, check_unicode
from sce.errors import ROW_ERRORS, ConfigError, DataError, InputError, SCEError
from sce.labels import Label, LabelSet, RaggedLabels, is_set_a_row
from sce.model.answers import Prediction

REQUEST_ROWS = 256
"""Of a request at most: its answer comes within the server's timeout also from a few CPU cores."""
MIN_REQUEST_ROWS = 16
"""What timeouts can bring that down to."""
CONNECT_SECONDS = 10.0
BACKOFF_SECONDS = (0.25, 15.0)
"""Before the first repetition, and at most; doubled each time, less up to a half by chance."""
OVERLOADED = (429, 502, 503, 504)
"""Answers of a server that may answer otherwise later."""
PROXY = (404, 500)
"""Answers of Ray's proxy while an application is not there yet, or its replica has died; the
application itself says more."""
FAILURES = 3
"""A request that the server fails at (500) is sent this many times: a replica may have died."""
LOUD_ATTEMPT = 4
"""Said in the log; that a request is repeated once or twice is usual."""
DIVISIBLE = ("max_texts", "max_body_bytes", "max_label_texts", "max_label_tokens", None)
"""Limits that half a request may keep; None is that of a proxy."""

_DROPPED = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)

log = logging.getLogger(__name__)


class EndpointError(SCEError):
    """The server fails, or what answers is no such server."""


class EndpointUnavailable(EndpointError):
    """No answer for as long as patience lasts: unreachable, restarting or overloaded."""


class NotAuthorised(InputError):
    """The server wants another token, or one at all."""


class RequestRefused(InputError):
    """The server refuses what is asked.

    Attributes:
        status: of HTTP.
        code: what is wrong, in a word.
        param: the field that is wrong, or the limit exceeded.
    """

    def __init__(
        self, message: str, status: int = 0, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class LimitExceeded(RequestRefused):
    """A row or a label set is too large for the server's limits (`param` names the limit)."""


class _TimedOut(SCEError):
    """A request of several rows took too long: fewer may not."""


class _Stopped(SCEError):
    """Another request of the same call has failed."""


@dataclass(frozen=True)
class RequestLimits:
    """How much the server takes in one request."""

    max_body_bytes: int = 2**20
    max_texts: int = 128
    max_label_texts: int = 1000
    max_label_tokens: int = 2**16


@dataclass(frozen=True)
class EndpointInfo:
    """What `/info` says.

    Attributes:
        models: by name.
        default_model: the one that answers requests that name none.
    """

    models: Mapping[str, ServedModel]
    default_model: str
    limits: RequestLimits
    version: str


@dataclass(frozen=True)
class RowError:
    """Why a row has no answer: a word of `sce.errors.ROW_ERRORS`."""

    code: str

    def __str__(self) -> str:
        return f"{self.code} ({ROW_ERRORS[self.code]})" if self.code in ROW_ERRORS else self.code


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
        url: of the server: `http://host:8000`, with the prefix of its routes where it has one.
        token: bearer token, where the server wants one.
        model: one of the server's models; None for its default.
        timeout: seconds that one request may take, that of the server being less.
        patience_seconds: how long one that gets no answer (overloaded, restarting, unreachable)
            is repeated while no other of this client gets one either.
        concurrency: requests of one call at a time.
        request_rows: of one request at most.

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
        request_rows: int = REQUEST_ROWS,
    ) -> None:
        self.url = _checked(url)
        self.model = model
        self._timeout = timeout
        self._patience = patience_seconds
        self._concurrency = max(1, concurrency)
        self._request_rows = max(1, request_rows)
        self._answered = -float("inf")
        self._info: EndpointInfo | None = None
        self._session = requests.Session()
        self._session.auth = _Bearer((token or "").strip())
        adapter = HTTPAdapter(pool_maxsize=max(16, self._concurrency))
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._session.close()

    def info(self) -> EndpointInfo:
        """What the server has and allows, as of now.

        Raises:
            EndpointUnavailable, EndpointError, NotAuthorised: see there.
        """
        self._info = self._read(_parse_info, self._ask("GET", "/info"))
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

    def predict(
        self,
        texts: str | Sequence[str] | np.ndarray | None = None,
        labels: Any = None,
        *,
        embeddings: np.ndarray | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        return_scores: bool = False,
        candidate_labels: Any = None,
    ) -> list[Prediction]:
        """`Predictor.predict`, with the same arguments and the same answers.

        Raises:
            LabelError, InputError: as there; `DataError` names the position of a bad row.
            RequestRefused, LimitExceeded, NotAuthorised: what is asked is not allowed there.
            EndpointUnavailable, EndpointError: nobody answers.
        """
        labels = candidate_labels if labels is None else labels
        if isinstance(texts, str):
            texts = [texts]
        if texts is not None and not _is_numeric_array(texts):
            texts = list(texts)
            check_texts(texts)
            check_unicode(texts)
        found = self.classify(
            texts,
            labels,
            embeddings=embeddings,
            threshold=threshold,
            top_k=top_k,
            return_scores=return_scores,
        )
        predictions = []
        for row, item in enumerate(found):
            if isinstance(item, RowError):
                what = "embeddings" if embeddings is not None else "texts"
                raise DataError(f"{what}[{row}]: {item}.")
            predictions.append(item)
        return predictions

    def classify(
        self,
        texts: Sequence[str] | np.ndarray | None = None,
        labels: Any = None,
        *,
        embeddings: np.ndarray | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        return_scores: bool = False,
    ) -> list[Prediction | RowError]:
        """`predict`, but that a row which cannot be answered does not hinder the others.

        Raises:
            LabelError, InputError, ...: as `predict`, rows apart.
        """
        if (texts is None) == (embeddings is None):
            raise InputError("give either texts or embeddings.")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k: {top_k}, but at least 1 is needed.")
        if _is_numeric_array(texts):
            texts, embeddings = None, texts  # type: ignore[assignment]
        if texts is not None:
            field, items = "texts", [_json(text) for text in texts]
        else:
            field, items = "embeddings", _encode_vectors(self._check_embeddings(embeddings))
        settings: dict[str, Any] = {"return_scores": bool(return_scores)}
        settings |= {} if self.model is None else {"model": self.model}
        settings |= {} if threshold is None else {"threshold": float(threshold)}
        settings |= {} if top_k is None else {"top_k": int(top_k)}
        rows = _Rows("/v1/classify", field, items, settings, _encode_labels(labels, len(items)))
        if not items:
            return []
        refused: dict[int, RowError] = {}
        if texts is not None:
            refused |= dict.fromkeys(rows.too_long(self._limits()), RowError("text_too_long"))
            refused |= dict.fromkeys(_not_unicode(texts), RowError("text_not_unicode"))
        if not refused:
            return list(self._answer(rows, _classified))
        found = iter(self._answer(rows.without(refused), _classified))
        return [refused[i] if i in refused else next(found) for i in range(len(items))]

    def embed(self, texts: Sequence[str]) -> EmbeddedTexts:
        """`TextEmbedder.embed` but for the token counts.

        Raises:
            DataError: a text is empty, not a text or too long for a request; names its position.
            RequestRefused, ...: as `predict`.
        """
        check_texts(texts)
        check_unicode(texts)
        settings: dict[str, Any] = {"encoding_format": "base64"}
        settings |= {} if self.model is None else {"model": self.model}
        rows = _Rows("/v1/embeddings", "input", [_json(text) for text in texts], settings)
        for row in rows.too_long(self._limits()):
            raise DataError(f"texts[{row}]: {RowError('text_too_long')}.")
        found = self._answer(rows, _embedded)
        vectors_ND = np.empty((len(found), self._dimension()), np.float32)
        for row, (vector_D, _) in enumerate(found):
            vectors_ND[row] = vector_D
        return EmbeddedTexts(vectors_ND, np.array([cut for _, cut in found], bool))

    def _limits(self) -> RequestLimits:
        return (self._info or self.info()).limits

    def _dimension(self) -> int:
        return self.served_model(self._info).dimension

    def _check_embeddings(self, embeddings: Any) -> np.ndarray:
        queries_ND, dimension = np.asarray(embeddings, np.float32), self._dimension()
        if queries_ND.ndim != 2 or queries_ND.shape[1] != dimension:
            raise InputError(
                f"embeddings: shape {queries_ND.shape}, but this model reads [N, {dimension}]."
            )
        bad = np.flatnonzero(~np.isfinite(queries_ND).all(1))
        if len(bad):
            raise InputError(f"embeddings[{bad[0]}]: holds NaN or infinity ({len(bad)} such rows).")
        return queries_ND

    def _answer(self, rows: _Rows, parse: _Parse) -> list[Any]:
        """One item a row, in order; the first request that fails ends all."""
        limits, stop = self._limits(), Event()
        waiting: deque[Future[list[Any]]] = deque()
        found: list[Any] = []
        start = 0
        threads = ThreadPoolExecutor(self._concurrency, "sce-client")
        try:
            while start < len(rows) or waiting:
                if start < len(rows) and len(waiting) < 2 * self._concurrency:
                    end = rows.request_end(start, self._request_rows, limits)
                    waiting.append(threads.submit(self._send, rows, start, end, parse, stop))
                    start = end
                else:
                    found += waiting.popleft().result()
        finally:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
        return found

    def _send(
        self,
        rows: _Rows,
        start: int,
        end: int,
        parse: _Parse,
        stop: Event,
        since: float | None = None,
    ) -> list[Any]:
        """Rows `start` to `end` in one request, or in halves where that is too much for it.

        Args:
            since: when the rows that these are a part of were sent first.
        """
        size, began = end - start, time.monotonic()
        try:
            content = self._ask("POST", rows.path, rows.body(start, end), stop, size > 1)
            return self._read(lambda content: parse(content, size), content)
        except LimitExceeded as error:
            if size == 1 or error.param not in DIVISIBLE:
                raise
            reason = error.param or "a limit on its way"
        except _TimedOut as error:
            if since is not None:
                self._check_patience(max(since, self._answered), 0.0, str(error))
            reason = "a timeout"
        half = size // 2
        self._request_rows = min(self._request_rows, max(MIN_REQUEST_ROWS, half))
        log.info("%s: %d rows in halves for %s", self.url, size, reason)
        since = began if since is None else since
        one = self._send(rows, start, start + half, parse, stop, since)
        return one + self._send(rows, start + half, end, parse, stop, since)

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        stop: Event | None = None,
        divisible: bool = False,
    ) -> Any:
        """The content of an answer that is no error.

        Args:
            stop: give up when it is set.
            divisible: raise `_TimedOut` rather than ask the same again.
        """
        stop = stop or Event()
        started, failures = time.monotonic(), 0
        for attempt in count(1):
            wait = 0.0
            try:
                response = self._session.request(
                    method,
                    self.url + path,
                    data=body,
                    headers={"Content-Type": "application/json"} if body else {},
                    timeout=(min(CONNECT_SECONDS, self._timeout), self._timeout),
                    allow_redirects=False,
                )
            except _DROPPED as error:
                if isinstance(error, requests.exceptions.SSLError):  # no matter of waiting
                    raise EndpointError(f"{self.url}: {_why(error)}") from None
                reason, timed_out = _why(error), isinstance(error, requests.ReadTimeout)
            except requests.RequestException as error:
                raise EndpointError(f"{self.url}: {_why(error)}") from None
            else:
                status = response.status_code
                if status < 300:
                    self._answered = time.monotonic()
                    if attempt > LOUD_ATTEMPT:
                        log.warning("%s: answers again", self.url)
                    return self._read(json.loads, response.content)
                said = _said(response)
                refusal = _error_of(self.url, response, said)
                failures += status == 500
                if not (
                    status in OVERLOADED
                    or (status in PROXY and not said)
                    or (status == 500 and failures < FAILURES)
                ):
                    raise refusal
                reason, timed_out = f"HTTP {status}: {refusal}", status == 504
                wait = _retry_after(response)
            if timed_out and divisible:
                raise _TimedOut(reason)
            # While others are answered the server is busy rather than away. But a row that always
            # takes too long is not helped by that.
            since = started if timed_out else max(started, self._answered)
            wait = max(wait, _backoff(attempt)) * random.uniform(1.0, 1.25)
            self._check_patience(since, wait, reason)
            level = logging.WARNING if attempt == LOUD_ATTEMPT else logging.DEBUG
            log.log(level, "%s: no answer, asking again (%s)", self.url, reason)
            if stop.wait(wait):
                raise _Stopped(reason)
        raise AssertionError

    def _check_patience(self, since: float, wait: float, reason: str) -> None:
        passed = time.monotonic() - since
        if passed + wait > self._patience:
            raise EndpointUnavailable(
                f"{self.url}: no answer in {passed:.0f} s (patience: {self._patience:g} s). "
                f"The last reason: {reason}"
            )

    def _read(self, parse: Callable[[Any], Any], content: Any) -> Any:
        try:
            return parse(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(
                f"{self.url}: the answer is not of a form that this client knows ({error!r:.200}). "
                "Is it the URL of an endpoint, of this version?"
            ) from None


_Parse = Callable[[Any, int], list[Any]]
"""From an answer to as many items as rows were sent."""


@dataclass(frozen=True)
class _Labels:
    """Label sets as they are sent: one for all rows, or one a row.

    Attributes:
        sets: JSON of the one, or of each row's.
        counts: labels in it or each.
        texts: names, descriptions and so on of each label.
        ids: of each row's labels; None for one set.
    """

    sets: list[bytes]
    counts: list[int]
    texts: list[int]
    ids: list[list[int]] | None = None

    def take(self, rows: Sequence[int]) -> _Labels:
        if self.ids is None:
            return self
        ids = self.ids
        sets, counts = [self.sets[i] for i in rows], [self.counts[i] for i in rows]
        return _Labels(sets, counts, self.texts, [ids[i] for i in rows])


@dataclass(frozen=True)
class _Rows:
    """Rows as they are sent, for any number of requests.

    Attributes:
        path: where to.
        field: what they are called in the request.
        items: JSON of each.
        settings: of every request.
    """

    path: str
    field: str
    items: list[bytes]
    settings: dict[str, Any]
    labels: _Labels | None = None

    def __len__(self) -> int:
        return len(self.items)

    def without(self, rows: Iterable[int]) -> _Rows:
        left_out = set(rows)
        kept = [i for i in range(len(self)) if i not in left_out]
        labels = None if self.labels is None else self.labels.take(kept)
        items = [self.items[i] for i in kept]
        return _Rows(self.path, self.field, items, self.settings, labels)

    def body(self, start: int, end: int) -> bytes:
        parts = [f'"{self.field}":['.encode() + b",".join(self.items[start:end]) + b"]"]
        if self.labels is not None and self.labels.ids is None:
            parts.append(b'"labels":' + self.labels.sets[0])
        elif self.labels is not None:
            parts.append(b'"labels":[' + b",".join(self.labels.sets[start:end]) + b"]")
        parts.append(_json(self.settings)[1:-1])
        return b"{" + b",".join(parts) + b"}"

    def request_end(self, start: int, most_rows: int, limits: RequestLimits) -> int:
        """Where a request that begins at `start` ends: at least one row later."""
        size, tokens, texts = self._shared_bytes(), 0, 0
        known: set[int] = set()
        last = min(len(self), start + most_rows, start + limits.max_texts)
        for row in range(start, last):
            size += len(self.items[row]) + 1 + self._own_bytes(row)
            if self.labels is not None:
                tokens += 1 + self.labels.counts[0 if self.labels.ids is None else row]
            if self.labels is not None and self.labels.ids is not None:
                new = [i for i in self.labels.ids[row] if i not in known]
                texts += sum(self.labels.texts[i] for i in new)
                known.update(new)
            fits = size <= limits.max_body_bytes and tokens <= limits.max_label_tokens
            if row > start and not (fits and texts <= limits.max_label_texts):
                return row
        return last

    def too_long(self, limits: RequestLimits) -> list[int]:
        """Rows that fit into no request, though their labels do."""
        shared = self._shared_bytes()
        room = (limits.max_body_bytes - shared - self._own_bytes(row) for row in range(len(self)))
        return [i for i, left in enumerate(room) if 0 < left < len(self.items[i]) + 1]

    def _shared_bytes(self) -> int:
        return len(self.body(0, 0))

    def _own_bytes(self, row: int) -> int:
        if self.labels is None or self.labels.ids is None:
            return 0
        return len(self.labels.sets[row]) + 1


class _Bearer(requests.auth.AuthBase):
    """Set also without a token: else `requests` looks for passwords in ~/.netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"endpoint: {url!r} is not a URL such as http://localhost:8000.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError("endpoint: a URL without password and query; a token is given as such.")
    return url.rstrip("/")


def _is_numeric_array(value: Any) -> bool:
    return hasattr(value, "__array__") and np.asarray(value).dtype.kind in "fiu"


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # a lone surrogate: not sent, or for the server to say so
        return json.dumps(value, separators=(",", ":")).encode()


def _not_unicode(texts: Iterable[Any]) -> list[int]:
    """Positions of texts with a lone surrogate, which JSON has no way to say."""
    found = []
    for i, text in enumerate(texts):
        try:
            str(text).encode()
        except UnicodeEncodeError:
            found.append(i)
    return found


def _encode_vectors(vectors_ND: np.ndarray) -> list[bytes]:
    little = np.ascontiguousarray(vectors_ND, "<f4")
    return [b'"' + base64.b64encode(vector_D.tobytes()) + b'"' for vector_D in little]


def _encode_labels(labels: Any, rows: int) -> _Labels:
    """Raises `LabelError` and `InputError` as `Predictor.predict`."""
    if not isinstance(labels, RaggedLabels) and not is_set_a_row(labels):
        label_set = LabelSet.parse(labels)
        one = _json([_wire_label(label) for label in label_set.labels])
        return _Labels([one], [len(label_set)], [])
    sets = len(labels)
    if sets != rows:
        raise InputError(f"labels: {sets} label sets for {rows} texts; one a text.")
    ragged = labels if isinstance(labels, RaggedLabels) else RaggedLabels.from_sets(labels)
    encoded = [_json(_wire_label(label)) for label in ragged.labels]
    ids = label_ids(ragged)
    return _Labels(
        [b"[" + b",".join(encoded[i] for i in row) + b"]" for row in ids],
        [len(row) for row in ids],
        [len(label.info_texts) + len(label.examples) for label in ragged.labels],
        ids,
    )


def label_ids(ragged: RaggedLabels) -> list[list[int]]:
    """Each row's labels as places in `ragged.labels`."""
    ids, offsets = ragged.ids_M.tolist(), ragged.offsets.tolist()
    return [ids[start:end] for start, end in pairwise(offsets)]


def _wire_label(label: Label) -> Any:
    known = {name: value for name, value in label.to_dict().items() if value}
    return label.name if set(known) == {"name"} else known


def _classified(content: Any, rows: int) -> list[Prediction | RowError]:
    found: list[Prediction | RowError] = []
    for item in _in_order(content["data"], rows):
        if item.get("error") is not None:
            found.append(RowError(item["error"]))
            continue
        top = item.get("top")
        found.append(
            Prediction(
                label=item["label"],
                score=item["score"],
                scores=item.get("scores"),
                top=None if top is None else [(best["label"], best["score"]) for best in top],
                truncated=item["truncated"],
            )
        )
    return found


def _embedded(content: Any, rows: int) -> list[tuple[np.ndarray, bool]]:
    return [
        (np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), item["truncated"])
        for item in _in_order(content["data"], rows)
    ]


def _in_order(data: Any, rows: int) -> Iterator[Any]:
    if [item["index"] for item in data] != list(range(rows)):
        raise ValueError(f"{len(data)} rows in another order, or not {rows}")
    yield from data


def _parse_info(content: Any) -> EndpointInfo:
    models = {
        model["id"]: ServedModel(
            model["id"],
            EmbedderFingerprint.from_dict(model["embedder"]),
            model["model_fingerprint"],
            model["dtype"],
            model["shortlist_above"],
            model["shortlist_size"],
        )
        for model in content["models"]
    }
    known = {field.name for field in fields(RequestLimits)}
    limits = {name: int(value) for name, value in content["limits"].items() if name in known}
    return EndpointInfo(
        models, content["default_model"], RequestLimits(**limits), str(content.get("version"))
    )


def _said(response: requests.Response) -> dict[str, Any]:
    """The error as the endpoint writes it; empty if something else wrote the answer."""
    try:
        found = json.loads(response.content)["error"]
        return {"message": found["message"], "code": found["code"], "param": found.get("param")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _error_of(url: str, response: requests.Response, said: Mapping[str, Any]) -> SCEError:
    """What a status that is none of success means."""
    status = response.status_code
    message = said.get("message") or " ".join(response.text[:200].split()) or response.reason
    if status in (401, 403):
        return NotAuthorised(f"{url}: {message} Give the token of this server.")
    if status < 400:
        there = response.headers.get("Location")
        return EndpointError(f"{url}: redirects to {there}; give that URL.")
    if status >= 500 or status == 429:
        return EndpointError(f"{url}: {message}")
    kind = LimitExceeded if status == 413 else RequestRefused
    return kind(f"{url} refuses: {message}", status, said.get("code"), said.get("param"))


def _backoff(attempt: int) -> float:
    first, most = BACKOFF_SECONDS
    return min(most, first * 2 ** min(attempt - 1, 16)) * random.uniform(0.5, 1.0)


def _retry_after(response: requests.Response) -> float:
    """Seconds that the server wants to be left alone, 0 where it does not say."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _why(error: BaseException) -> str:
    """The innermost reason of an error of `requests`, which wraps it in others."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    found = str(error.args[-1]) if error.args else str(error)
    return f"{type(error).__name__}: {found}".replace("\n", " ")[:300]
