"""Bulk jobs by request: `/v1/batches` starts `jobs/classify.py` as a Ray job.

All that is known of a batch is with Ray's job server and in the output's folder, so any gateway,
also one that was started later, can tell of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import posixpath
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from sce.bulk.output import read_run, rows_done
from sce.client.wire import Batch, BatchRequest, RequestCounts
from sce.distributed.session import dashboard_url
from sce.errors import InputError, quoted
from sce.storage import readable, rooted_place
from sce.storage.recipes import PACKAGE, shipped_folder
from serve.refusals import ApiError
from serve.settings import BatchSettings, ModelSettings

PREFIX = "batch_"
ENTRYPOINT_CPUS = 0.01
"""Of a batch's own process, which waits for its actors."""
MOST_SAID = 1000
"""Characters of a reason."""
_RUNNING = (JobStatus.PENDING, JobStatus.RUNNING)
_ENDED = {
    JobStatus.SUCCEEDED: "completed",
    JobStatus.STOPPED: "cancelled",
    JobStatus.FAILED: "failed",
}
_OTHERS = {"input", "output", "model", "labels", "metadata"}
"""Fields that are no settings of `jobs/classify.py` as they stand."""

log = logging.getLogger("ray.serve")
T = TypeVar("T")


class BatchJobs:
    """Starts, finds and stops batches."""

    def __init__(self) -> None:
        self.settings = BatchSettings()  # by which none are allowed
        self.models: Mapping[str, ModelSettings] = {}
        self._stopped: set[str] = set()
        self._starting = asyncio.Lock()

    async def create(self, request: BatchRequest, model: str) -> Batch:
        """Start a job.

        Raises:
            ApiError: 403, no batches here, or not there; 429, enough of them are running.
        """
        source = self._allowed("input", request.input, self.settings.input_roots)
        target = self._allowed("output", request.output, self.settings.output_roots)
        about = {"model": model, "input": source, "output": target, "metadata": request.metadata}
        async with self._starting:
            running = [job for job in await self._jobs() if job.status in _RUNNING]
            if len(running) >= self.settings.max_running:
                most = self.settings.max_running
                count = f"{len(running)} batches are running (max_running: {most})"
                message = f"{count}; try again later."
                headers = {"Retry-After": "30"}
                raise ApiError(429, "overloaded", message, "max_running", headers)
            if any(_about(job)["output"] == target for job in running):
                message = f"a batch is writing {quoted(target)}."
                raise ApiError(409, "output_in_use", message, "output")
            name = f"{PREFIX}{uuid.uuid4().hex}"
            await self._call(self._submit, name, request, about)
        return await self.get(name)

    async def get(self, name: str) -> Batch:
        """Raises `ApiError` 404 where there is no such batch."""
        found = [job for job in await self._jobs() if job.submission_id == name]
        if not found:
            raise ApiError(404, "batch_not_found", f"no batch {quoted(name)}.", "batch_id")
        return await self._call(self._describe, found[0])

    async def every(self) -> list[Batch]:
        """The newest first."""
        jobs = sorted(await self._jobs(), key=lambda job: -(job.start_time or 0))
        return [await self._call(self._describe, job) for job in jobs]

    async def cancel(self, name: str) -> Batch:
        """Stop it; rows that are done stay, and a batch with the same request goes on there."""
        batch = await self.get(name)
        if batch.status == "in_progress":
            self._stopped.add(name)
            await self._call(lambda: self._client.stop_job(name))
            batch = await self.get(name)
        return batch

    def _allowed(self, param: str, place: str, roots: Sequence[str]) -> str:
        """The place in its plainest form, which is the one that the job gets."""
        if not self.settings.allowed:
            message = (
                "this server takes no batches: its settings batches.input_roots and "
                "batches.output_roots are empty."
            )
            raise ApiError(403, "batches_disabled", message)
        plain, known = plain_place(place), [root for root in map(plain_place, roots) if root]
        itself = param == "input" and plain in known  # a whole root may be read
        folders = tuple(f"{root.rstrip('/')}/" for root in known)
        if plain is None or not (itself or plain.startswith(folders)):
            message = f"{param}: {quoted(place)} is not below {' or '.join(map(repr, roots))}."
            raise ApiError(403, "location_not_allowed", message, param)
        return plain

    def _roots(self) -> list[str]:
        """As `plain_place` has them: what links to a root is resolved, what lies below is not."""
        roots = (*self.settings.input_roots, *self.settings.output_roots)
        return list(dict.fromkeys(filter(None, map(plain_place, roots))))

    def _submit(self, name: str, request: BatchRequest, about: dict[str, Any]) -> None:
        """With the code of this server, so that it runs on any node."""
        model = self.models[about["model"]]
        settings = request.model_dump(exclude=_OTHERS, exclude_none=True)
        settings |= {"input": [about["input"]], "output": about["output"], "model": model.path}
        settings |= {"dtype": model.dtype, "exact": model.exact, "roots": self._roots()}
        settings["tracking"] = {"enabled": "MLFLOW_TRACKING_URI" in os.environ}
        if model.embedder is not None:
            settings["embedder"] = model.embedder.model_dump(exclude_none=True)
        with tempfile.TemporaryDirectory() as scratch:
            home = Path(scratch)
            for folder in (PACKAGE, shipped_folder("jobs")):
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(folder, home / folder.name, ignore=skip)
            if request.labels is not None:
                (home / "labels.json").write_text(json.dumps(request.labels), encoding="utf-8")
                settings["labels_file"] = "labels.json"
            (home / "batch.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
            self._client.submit_job(
                entrypoint=f"{sys.executable} jobs/classify.py --config batch.yaml",
                submission_id=name,
                runtime_env={"working_dir": scratch},
                # With none Ray would run it on the head, which has no CPUs for work as a rule.
                entrypoint_num_cpus=ENTRYPOINT_CPUS,
                metadata={"batch": json.dumps(about), "created": str(int(time.time()))},
            )
        log.info("%s: %s -> %s", name, about["input"], about["output"])

    def _describe(self, job: JobDetails) -> Batch:
        about = _about(job)
        running = "cancelling" if job.submission_id in self._stopped else "in_progress"
        status, error, counts = _ENDED.get(job.status, running), None, RequestCounts()
        try:
            run = read_run(rooted_place(about["output"], self._roots()))
            if run is not None and run.done:
                assert run.summary is not None
                total, failed = run.summary["rows_in"], sum(run.summary["errors"].values())
                counts = RequestCounts(total=total, completed=total - failed, failed=failed)
            elif run is not None:
                failed = sum(sum(part.errors.values()) for part in run.parts.values())
                done = rows_done(run)
                counts = RequestCounts(completed=done - failed, failed=failed)
        except (InputError, OSError) as problem:
            error = readable(getattr(problem, "without_quotes", type(problem).__name__))
        if status == "failed":
            error = _last_words(self._client.get_job_logs(job.submission_id or ""))
        ended = job.end_time if job.status.is_terminal() else None
        return Batch(
            id=job.submission_id or "",
            status=status,  # type: ignore[arg-type]
            created_at=int((job.metadata or {}).get("created", 0)),
            completed_at=None if not ended else ended // 1000,
            request_counts=counts,
            error=error,
            **about,
        )

    async def _jobs(self) -> list[JobDetails]:
        found = await self._call(lambda: self._client.list_jobs())
        return [job for job in found if (job.submission_id or "").startswith(PREFIX)]

    @cached_property
    def _client(self) -> JobSubmissionClient:
        """Made by the first call, in its thread: it asks the server at once."""
        address = self.settings.dashboard or dashboard_url()
        # What the environment names goes before an argument, and may be a cluster of others.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        return JobSubmissionClient(address)

    async def _call(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.to_thread(work, *arguments)
        except (ConnectionError, RuntimeError):
            log.exception("Ray's job server")  # which quotes paths and tracebacks of its own
            message = "Ray's job server does not answer; the log of this server says why."
            headers = {"Retry-After": "5"}
            raise ApiError(503, "jobs_unavailable", message, headers=headers) from None


def plain_place(place: str) -> str | None:
    """A path or URI without "..", links and doubled separators; None where it cannot be one.

    A URI with a query, a fragment or a user is none: its query could name another server.
    """
    if "\x00" in place or not place.strip():
        return None
    if "://" not in place:
        path = Path(place)
        return str(path.resolve()) if path.is_absolute() else None
    parts = urlsplit(place)
    if parts.query or parts.fragment or "@" in parts.netloc or "%" in place or "\\" in place:
        return None
    if parts.scheme == "file":
        return plain_place(parts.path) if not parts.netloc else None
    path_in = posixpath.normpath("/" + parts.path.lstrip("/"))  # it keeps two slashes
    if ".." in parts.path.split("/"):
        return None
    return f"{parts.scheme.lower()}://{parts.netloc}{path_in.rstrip('/')}"


def _about(job: JobDetails) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((job.metadata or {}).get("batch", "{}"))
    return {"model": "", "input": "", "output": "", "metadata": {}} | known


def _last_words(log_text: str) -> str:
    """Why a job failed, as it said itself for those who may not read its files."""
    for line in reversed(log_text.splitlines()):
        if line.startswith('{"error": '):
            with suppress(ValueError):
                return str(json.loads(line)["error"])[:MOST_SAID]
    return "it ended without a reason; the log of its job, on the server, says more."
