"""Batches in OpenAI's form: every line of an uploaded file is a request, and every answer a line of
another.

The models behind the gateway answer them, as they would one by one: a line has labels of its own,
which no bulk job takes. All that is known of a batch lies in its owner's folder. Who works on one
holds its lock; where that process ended, the next gateway that is asked goes on behind the last
line that was answered.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import to_json

from sce.errors import LabelError, clipped, quoted
from sce.storage.documents import unique_keys
from serve.file_forms import (
    FINAL,
    FileBatch,
    FileBatchRequest,
    LineCounts,
    LineProblem,
    LineProblems,
    LineRequest,
)
from serve.files import FileStore, is_name, new_name, open_new, read_json, write_json
from serve.refusals import ApiError
from serve.work import NoSuchLabelSet

PREFIX = "batch_file_"
WINDOW = 32
"""Lines that are asked at a time: enough to fill a model's batches, few beside other requests."""
ATTEMPTS = 8
"""For a line that an overloaded or absent model does not answer: two minutes."""
MOST_WAIT_SECONDS = 30.0
MOST_PROBLEMS = 10
LINE_MORE = 4096
"""Bytes of a line beside its request's body."""

MOST_BYTES = 2**20
"""Or fewer lines, of so many bytes: their answers are in memory together."""
Answer = Callable[[str, bytes], Awaitable[bytes]]
"""Of an endpoint and a body, as JSON; raises `ApiError`."""

log = logging.getLogger("ray.serve")


class FileBatches:
    """Starts, finds and stops batches of files in `store`."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._starting = asyncio.Lock()
        self.max_line_bytes = 16 * 2**20

    async def create(self, owner: str, request: FileBatchRequest, answer: Answer) -> FileBatch:
        """Begin to answer a file.

        Raises:
            ApiError: 403, no files here; 404, no such file; 422, it is no file of requests; 429,
                enough batches are running.
        """
        file = await asyncio.to_thread(self._store.get, owner, request.input_file_id)
        if file.purpose != "batch":
            message = f"input_file_id: {quoted(file.id)} is a file that a batch wrote."
            raise ApiError(422, "invalid_value", message, "input_file_id")
        async with self._starting:
            await asyncio.to_thread(self._check_running)
            batch = FileBatch(
                id=new_name(PREFIX),
                endpoint=request.endpoint,
                input_file_id=file.id,
                status="validating",
                created_at=int(time.time()),
                metadata=request.metadata or {},
            )
            await asyncio.to_thread(write_json, self._path(owner, batch.id), batch.model_dump())
        self._begin(owner, batch.id, answer)
        return batch

    async def get(self, owner: str, name: str, answer: Answer) -> FileBatch:
        """Raises `ApiError` 404 where the owner has no such batch."""
        batch = await asyncio.to_thread(self._read, owner, name)
        if batch.status not in FINAL:
            self._begin(owner, name, answer)
        return batch

    async def every(self, owner: str) -> list[FileBatch]:
        """The newest first."""
        return await asyncio.to_thread(self._every, owner)

    async def cancel(self, owner: str, name: str, answer: Answer) -> FileBatch:
        """Stop it after the lines that are being answered; the answers so far are kept."""
        batch = await self.get(owner, name, answer)
        if batch.status not in FINAL:
            await asyncio.to_thread(self._path(owner, name, "cancel").touch, 0o600)
            batch = await self.get(owner, name, answer)
        return batch

    async def go_on(self, answer: Answer) -> None:
        """With every batch whose process ended."""
        for path in await asyncio.to_thread(self._open_batches):
            self._begin(path.parent.name, path.stem, answer)

    def check_unused(self, owner: str, file: str) -> None:
        """Raises `ApiError` 409: a batch reads the file."""
        for batch in self._every(owner):
            if batch.input_file_id == file and batch.status not in FINAL:
                message = f"the batch {batch.id} reads this file; cancel it first."
                raise ApiError(409, "file_in_use", message, "file_id")

    def _path(self, owner: str, name: str, kind: str = "json") -> Path:
        return self._store.folder(owner) / f"{name}.{kind}"

    def _read(self, owner: str, name: str) -> FileBatch:
        ours = name.startswith(PREFIX) and is_name(name)
        found = read_json(self._path(owner, name)) if ours else None
        if found is None:
            raise ApiError(404, "batch_not_found", f"no batch {quoted(name)}.", "batch_id")
        batch = FileBatch.model_validate(found)
        if batch.status not in FINAL and self._path(owner, name, "cancel").exists():
            return batch.model_copy(update={"status": "cancelling"})
        return batch

    def _every(self, owner: str) -> list[FileBatch]:
        names = [path.stem for path in self._store.folder(owner).glob(f"{PREFIX}*.json")]
        found = [self._read(owner, name) for name in names]
        return sorted(found, key=lambda batch: (-batch.created_at, batch.id))

    def _open_batches(self) -> list[Path]:
        """Of all owners."""
        found = []
        for path in self._store.folder("").glob(f"*/{PREFIX}*.json"):
            about = read_json(path)
            if about is not None and about["status"] not in FINAL:
                found.append(path)
        return found

    def _check_running(self) -> None:
        running, most = len(self._open_batches()), self._store.settings.max_running
        if running >= most:
            message = (
                f"{running} batches of files are running (max_running: {most}); try again later."
            )
            headers = {"Retry-After": "30"}
            raise ApiError(429, "overloaded", message, "max_running", headers)

    def _begin(self, owner: str, name: str, answer: Answer) -> None:
        """In this process, unless another works on it."""
        if name not in self._tasks:  # a task that nothing refers to may be collected
            self._tasks[name] = task = asyncio.create_task(self._work(owner, name, answer))
            task.add_done_callback(lambda _: self._tasks.pop(name))

    async def _work(self, owner: str, name: str, answer: Answer) -> None:
        with _locked(self._path(owner, name, "lock")) as mine:
            if not mine:
                return
            batch = await asyncio.to_thread(self._read, owner, name)
            if batch.status in FINAL:
                return
            run = _Run(self._store, owner, batch, self.max_line_bytes)
            try:
                await self._answer_all(run, answer)
            except ApiError as error:  # no room for the answers
                await asyncio.to_thread(run.fail, [_problem(error.code, error.message)])
            except Exception:
                log.exception("%s failed", name)
                problem = _problem("internal_error", "the server failed; its log says where.")
                await asyncio.to_thread(run.fail, [problem])

    async def _answer_all(self, run: _Run, answer: Answer) -> None:
        problems = await asyncio.to_thread(run.begin)
        if problems:
            await asyncio.to_thread(run.fail, problems)
            return
        lines = run.lines()
        cancelled = False
        while window := await asyncio.to_thread(_window, lines):
            if cancelled := self._path(run.owner, run.batch.id, "cancel").exists():
                break
            asked = (_answer_line(line, answer) for line in window)
            await asyncio.to_thread(run.write, await asyncio.gather(*asked))
        await asyncio.to_thread(run.end, "cancelled" if cancelled else "completed")


class _Outcome(NamedTuple):
    """What a line was answered, as a line; whether it is an error."""

    line: bytes
    failed: bool


class _Run:
    """The work on one batch, as its folder has it; every method blocks."""

    def __init__(self, store: FileStore, owner: str, batch: FileBatch, max_line_bytes: int) -> None:
        self.owner, self.batch = owner, batch
        self._store, self._max_line_bytes = store, max_line_bytes
        # Told only when they are complete, but known from the batch's own name: whoever goes on
        # with it goes on with them.
        number = batch.id.removeprefix(PREFIX)
        self._names = {
            failed: f"file-{uuid.uuid5(uuid.UUID(number), kind).hex}"
            for failed, kind in ((False, "output"), (True, "errors"))
        }
        self._paths = {f: store.content_path(owner, name) for f, name in self._names.items()}
        self._input = store.content_path(owner, batch.input_file_id)
        self._done: set[str] = set()

    def begin(self) -> list[LineProblem]:
        """Check the file, and look up what is answered already."""
        if self.batch.status == "validating":
            total, problems = self._check()
            if problems:
                return problems
            counts = LineCounts(total=total)
            self._save(status="in_progress", in_progress_at=_now(), request_counts=counts)
        known = {False: 0, True: 0}
        for failed, path in self._paths.items():
            for line in _whole_lines(path):
                self._done.add(json.loads(line)["custom_id"])
                known[failed] += 1
        self._count(known[False], known[True])
        return []

    def lines(self) -> Iterator[tuple[LineRequest, int]]:
        """Requests that are not answered, with the bytes of each."""
        with self._input.open("rb") as file:
            for line in file:
                if line.strip():
                    request = LineRequest.model_validate_json(line)
                    if request.custom_id not in self._done:
                        yield request, len(line)

    def write(self, outcomes: Sequence[_Outcome]) -> None:
        """Raises `ApiError` 413 where the owner's files take too much room."""
        counts = self.batch.request_counts
        found = {False: [o.line for o in outcomes if not o.failed]}
        found[True] = [o.line for o in outcomes if o.failed]
        for failed, lines in found.items():
            if lines:
                self._store.check_room(self.owner, sum(map(len, lines)))
                with open_new(self._paths[failed], "ab") as file:
                    file.write(b"".join(lines))
        self._count(counts.completed + len(found[False]), counts.failed + len(found[True]))

    def end(self, status: str) -> None:
        names: dict[bool, str | None] = {}
        for failed, kind in ((False, "output"), (True, "errors")):
            written = self._paths[failed].exists()
            names[failed] = self._names[failed] if written else None
            if written:
                title = f"{self.batch.id}_{kind}.jsonl"
                self._store.add(self.owner, "batch_output", title, self._names[failed])
        ids = {"output_file_id": names[False], "error_file_id": names[True]}
        self._save(status=status, **ids, **{f"{status}_at": _now()})
        for kind in ("cancel", "lock"):
            (self._store.folder(self.owner) / f"{self.batch.id}.{kind}").unlink(missing_ok=True)

    def fail(self, problems: list[LineProblem]) -> None:
        self._save(errors=LineProblems(data=problems))
        self.end("failed")

    def _check(self) -> tuple[int, list[LineProblem]]:
        """How many requests the file has, and its first problems."""
        seen: set[str] = set()
        problems: list[LineProblem] = []
        most, bound = self._store.settings.max_file_requests, self._max_line_bytes + LINE_MORE
        with self._input.open("rb") as file:
            place = 0
            while (line := file.readline(bound + 1)) and len(problems) < MOST_PROBLEMS:
                place += 1
                if len(line) > bound:
                    message = f"it has more than {bound} bytes (max_body_bytes)."
                    return len(seen), [*problems, _problem("line_too_long", message, place)]
                if not line.strip():
                    continue
                try:
                    name = _read_line(line, self.batch.endpoint)
                except ApiError as error:
                    problems.append(_problem(error.code, error.message, place, error.param))
                    continue
                if name in seen:
                    message = f"custom_id {quoted(name)} stands twice."
                    problems.append(_problem("duplicate_custom_id", message, place, "custom_id"))
                seen.add(name)
                if len(seen) > most:
                    message = f"the file has more than {most} requests (max_file_requests)."
                    return len(seen), [*problems, _problem("too_many_requests", message, place)]
        if not seen and not problems:
            problems.append(_problem("empty_file", "the file has no requests."))
        return len(seen), problems

    def _count(self, completed: int, failed: int) -> None:
        total = self.batch.request_counts.total
        self._save(request_counts=LineCounts(total=total, completed=completed, failed=failed))

    def _save(self, **changed: Any) -> None:
        self.batch = self.batch.model_copy(update=changed)
        about = self.batch.model_dump()
        if self.batch.status == "cancelling":  # the marker says so
            about["status"] = "in_progress" if self.batch.in_progress_at else "validating"
        write_json(self._store.folder(self.owner) / f"{self.batch.id}.json", about)


def _read_line(line: bytes, endpoint: str) -> str:
    """The `custom_id` of a line. Raises `ApiError`: it is no request of `endpoint`."""
    form = 'a line is {"custom_id": ..., "method": "POST", "url": ..., "body": {...}}'
    try:
        json.loads(line, object_pairs_hook=unique_keys)
        request = LineRequest.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = (
            f"{clipped(where)}: {first['msg']}; {form}." if where else f"{first['msg']}; {form}."
        )
        raise ApiError(422, "invalid_request", message, clipped(where) or None) from None
    except (ValueError, RecursionError, LabelError) as error:
        message = f"it is no JSON object: {clipped(str(error))}; {form}."
        raise ApiError(422, "invalid_json_line", message) from None
    if request.url != endpoint:
        message = f"url: {quoted(request.url)}, but the batch's endpoint is {endpoint}."
        raise ApiError(422, "mismatched_url", message, "url")
    return request.custom_id


def _window(lines: Iterator[tuple[LineRequest, int]]) -> list[LineRequest]:
    """The next ones that are asked together; empty at the end."""
    found, size = [], 0
    for line, more in lines:
        found.append(line)
        size += more
        if len(found) == WINDOW or size > MOST_BYTES:
            break
    return found


async def _answer_line(line: LineRequest, answer: Answer) -> _Outcome:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            status, body = 200, await answer(line.url, to_json(line.body))
            break
        except NoSuchLabelSet:
            message = "the label set is not there any more; see /v1/label_sets."
            error = ApiError(404, "label_set_not_found", message, "label_set")
        except ApiError as refused:
            error = refused
        except Exception:
            log.exception("a request of a file failed")
            error = ApiError(500, "internal_error", "the server failed; its log says where.")
        status, body = error.status, to_json(error.body())
        if status not in (429, 503):
            break
        await asyncio.sleep(min(2.0**attempt / 2, MOST_WAIT_SECONDS))
    about = to_json({"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id})[:-1]
    response = to_json({"status_code": status, "request_id": f"req_{uuid.uuid4().hex}"})[:-1]
    whole = about + b',"response":' + response + b',"body":' + body + b'},"error":null}\n'
    return _Outcome(whole, status != 200)


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Of a file to which one process after another adds; half a line that one left is taken off."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(whole)
                return
            whole += len(line)
            yield line


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this process may work on what the lock stands for."""
    with open_new(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True  # until the file is closed, also by this process's end


def _problem(
    code: str, message: str, line: int | None = None, param: str | None = None
) -> LineProblem:
    return LineProblem(code=code, line=line, message=message, param=param)


def _now() -> int:
    return int(time.time())
