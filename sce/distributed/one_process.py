"""One process beside this one that holds the model: a small input is answered there before Ray had
started. Files, blocks and commits are those of Ray's actors.

It begins to import while this process looks at its input, and ends with it, however that ends.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from sce.bulk.blocks import EMBED_ROWS_PER_FILE, ROWS_PER_FILE, BlockFunction, Stage
from sce.bulk.corpus import Columns, Corpus, Shard
from sce.bulk.counts import ActorCounts, ErrorLimit, too_many_errors
from sce.bulk.output import OutputRun
from sce.bulk.reading import read_shard
from sce.bulk.table_csv import write_csv
from sce.bulk.table_json import write_jsonl
from sce.config import forget_secrets
from sce.datasets.text_form import COMPRESSIONS
from sce.distributed.resources import use_threads
from sce.distributed.settings import ResourcesConfig
from sce.embedding.store import null_where_none
from sce.errors import SCEError
from sce.storage import filesystem_of

SMALL_BYTES = {"text": 32 * 2**20, "vectors": 128 * 2**20}
MOST_ROWS = {"text": EMBED_ROWS_PER_FILE["cpu"], "vectors": ROWS_PER_FILE}
"""Of a small input: a file of the output, which is what a kill undoes of a larger one too."""
MOST_FILES = 8
PACKED = 20
"""How much larger a compressed file is taken to be."""


def may_run_here(resources: ResourcesConfig) -> bool:
    """Whether this machine is all that a job has: no cluster is named or joined, no GPU is here,
    and no actors are asked for."""
    ray = sys.modules.get("ray")
    asked = resources.embed_actors, resources.accelerator_type, resources.gpus_per_embed_actor
    return (
        os.environ.get("RAY_ADDRESS", "local") in ("", "local")
        and not (ray is not None and ray.is_initialized())
        and resources.use_gpu is not True
        and not any(asked)
        and (resources.use_gpu is False or not any(Path("/dev").glob("nvidia[0-9]*")))
    )


def is_small(
    corpus: Corpus,
    columns: Columns,
    shards: Callable[[], Sequence[Shard]],
    rows_per_file: int | None = None,
) -> bool:
    """Whether one process has answered a corpus in the time that more would take to start; no more
    rows than stand in a file of the output, by default `MOST_ROWS`."""
    kind = "vectors" if columns.text is None else "text"
    if corpus.kind != ".parquet" and len(corpus.files) > MOST_FILES:
        return False
    packed = (*COMPRESSIONS, ".xlsx")
    sizes = (
        f.size * (PACKED if PurePosixPath(f.uri).suffix in packed else 1) for f in corpus.files
    )
    return sum(sizes) <= SMALL_BYTES[kind] and sum(shard.rows for shard in shards()) <= (
        rows_per_file or MOST_ROWS[kind]
    )


class OneProcess:
    """The process. `close` it, or use it as a context.

    Args:
        threads: torch's, as `use_threads` has them; None for as many as there are cores.
        modules: what it imports first.
    """

    actors: int = 1
    device: Literal["cpu"] = "cpu"

    def __init__(self, threads: float | None = None, modules: Sequence[str] = ()) -> None:
        forget_secrets()
        self.threads = max(1, int(threads or len(os.sched_getaffinity(0))))
        ours, theirs = socket.socketpair()
        begin = f"work({theirs.fileno()}, {self.threads}, {list(modules)!r})"
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import work; {begin}"
        with ours, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
            )
            self._pipe = Connection(ours.detach())
        self._made = b""
        self._embedded = 0

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, in the middle of its work too."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def make(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        """Let it build a function, of blocks or else, and go on meanwhile; it keeps the one that it
        has where that is the same."""
        pickled = pickle.dumps(make)
        if pickled != self._made:
            self._made = pickled
            self._send("make", make)

    def wait(self) -> None:
        """Until the function is made. Raises what making it did."""
        self._send("ready", None)
        self._receive("ready")

    def apply(self, block: Any) -> Any:
        """The function's result. Raises what it raised, or what making it did."""
        self._send("apply", block)
        return self._receive("applied")

    @contextmanager
    def begun(self, stage: Stage, limit: ErrorLimit) -> Iterator[_StageHere]:
        """What works off the parts of a stage, once its model is loaded."""
        started = time.time()
        self.make(stage.make)
        self.wait()
        yield _StageHere(self, limit, time.time() - started)

    @property
    def embedded(self) -> int:
        """Texts of the block at work that are embedded so far."""
        return self._embedded

    def _send(self, what: str, argument: Any) -> None:
        try:
            self._pipe.send((what, argument))
        except OSError:
            self._raise_ended()

    def _receive(self, expected: str) -> Any:
        self._embedded = 0
        while True:
            try:
                what, value = self._pipe.recv()
            except (EOFError, OSError):
                self._raise_ended()
            if what == "embedded":
                self._embedded += value
            elif what == "raised":
                self.close()  # what was asked since would be answered later
                raise value
            elif what == expected:
                return value

    def _raise_ended(self) -> None:
        code = self._process.wait()
        why = (
            f" by signal {-code} (9 may be a lack of memory)" if code < 0 else f" with code {code}"
        )
        raise RuntimeError(f"the process that holds the model was ended{why}.") from None


class _StageHere:
    """Works off the parts of a stage. `load_seconds` were waited for its model."""

    def __init__(self, process: OneProcess, limit: ErrorLimit, load_seconds: float) -> None:
        self._process, self._limit, self.load_seconds = process, limit, load_seconds
        self._rows = self._at_work = 0
        self._errors: Counter[str] = Counter()
        self._started = self._finished = 0.0
        self._written: tuple[str, ...] = ()

    def totals(self, timeout: float | None = None) -> ActorCounts:
        ahead = min(self._process.embedded, self._at_work)  # a text may be several, in chunks
        now = self._finished or time.time()
        return ActorCounts(
            self._rows + ahead, dict(self._errors), self._started, now, self.load_seconds
        )

    def run_part(self, run: OutputRun, number: int, shards: Sequence[Shard], stage: Stage) -> None:
        """Raises `TooManyErrors`, and what a file or the block's function raises."""
        self._started = self._started or time.time()
        answered: list[pa.Table] = []
        for block in _batches(shards, stage):
            self._at_work = block.num_rows
            answered.append(self._counted(self._process.apply(block)))
        self._finished = time.time()
        self._written = tuple(_write(run, number, answered, stage))

    def confirmed(self, run: OutputRun, number: int) -> tuple[str, ...]:
        """What the names of a part's files begin with that stand whole."""
        return self._written

    def _counted(self, answered: pa.Table) -> pa.Table:
        codes = answered["error"]
        self._rows += answered.num_rows
        self._errors.update(codes.filter(pc.not_equal(codes, "")).to_pylist())
        if self._limit.exceeded(self._rows, sum(self._errors.values())):
            raise too_many_errors(self._rows, self._errors)
        place = answered.column_names.index("error")
        return answered.set_column(place, "error", null_where_none(codes))


def _batches(shards: Sequence[Shard], stage: Stage) -> Iterator[pa.Table]:
    """Of `batch_rows` rows each, over the shards, but for the last."""
    held: list[pa.Table] = []
    for shard in shards:
        for table in read_shard(shard, stage.columns):
            held.append(table)
            while sum(map(len, held)) >= stage.batch_rows:
                whole = pa.concat_tables(held)
                yield whole.slice(0, stage.batch_rows).combine_chunks()
                held = [whole.slice(stage.batch_rows)]
    if any(map(len, held)):
        yield pa.concat_tables(held).combine_chunks()


def _write(run: OutputRun, number: int, tables: Sequence[pa.Table], stage: Stage) -> Iterator[str]:
    """Write the rows of a part as Ray's sinks do; what the names of the files begin with."""
    filesystem, folder = filesystem_of(run.part_uri(number))
    if not tables:
        return
    filesystem.create_dir(folder, recursive=True)
    name = f"{run.part_name(number)}_{uuid.uuid4().hex}_000000"
    if stage.output_format == "parquet":
        options = dict(stage.write_options or {})
        rows = options.pop("row_group_size", None) or stage.rows_per_file
        pads.write_dataset(
            list(tables),
            folder,
            schema=tables[0].schema,
            filesystem=filesystem,
            format="parquet",
            basename_template=f"{name}-{{i}}.parquet",
            existing_data_behavior="overwrite_or_ignore",
            use_threads=True,
            min_rows_per_group=rows,
            max_rows_per_group=rows if "row_group_size" in (stage.write_options or {}) else None,
            file_options=pads.ParquetFileFormat().make_write_options(**options),
        )
    else:
        table = pa.concat_tables(tables)
        with filesystem.open_output_stream(f"{folder}/{name}.{stage.output_format}") as file:
            if stage.output_format == "csv":
                write_csv(table, file, stage.labels)
            else:
                write_jsonl(table, file, stage.json_columns)
    yield name


def work(descriptor: int, threads: int, modules: Sequence[str]) -> None:
    """What the process does until the other end of its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the job decides, which Ctrl+C reaches as well
    pipe = Connection(descriptor)
    for name in modules:
        importlib.import_module(name)
    apply: BlockFunction | None = None
    with suppress(EOFError, OSError):
        while True:
            what, argument = pipe.recv()
            try:
                if what == "make":
                    use_threads(threads)
                    apply = argument()
                    _report_batches(pipe)
                elif what == "ready":
                    pipe.send(("ready", None))
                else:
                    assert apply is not None
                    pipe.send(("applied", apply(argument)))
            except Exception as error:
                pipe.send(("raised", _sendable(error)))


def _report_batches(pipe: Connection) -> None:
    """Of the embedder, where one is loaded."""
    module = sys.modules.get("sce.embedding.embedder")
    if module is not None:
        module.TextEmbedder.on_batch = staticmethod(lambda texts: pipe.send(("embedded", texts)))


def _sendable(error: Exception) -> Exception:
    """A user's mistake as it is; a bug with its traceback, which does not travel by itself."""
    return error if isinstance(error, SCEError) else RuntimeError(traceback.format_exc())
