"""A source rendered once: in parallel, straight to Arrow, remembered by what it was made of."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO

import datasets
import pyarrow as pa
from tqdm import tqdm

from gptoss_ft.data.assemble import assembled
from gptoss_ft.data.bad import (
    DROPPED,
    BadRow,
    DroppedRows,
    count_bad,
    every_row_is_bad,
    moved,
    open_lines,
    refused,
    write_bad,
)
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.options import DataOptions, SourceOptions, cache_folder
from gptoss_ft.data.rows import CONVERSATIONS, RowChunkResult, RowKind, render_chunk
from gptoss_ft.data.sources.file_types import stem_of
from gptoss_ft.data.sources.read import Found, RowChunk, find_files, read_source
from gptoss_ft.data.summary import Counts
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.files import atomic_folder, code_digest, sha256_file
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import Vocabulary, load_vocabulary, packaged_vocabulary

# Below this many bytes the work is done before a second process has started.
PARALLEL_BYTES = 16 * 2**20
CHUNKS_IN_FLIGHT = 4
MAX_PROBLEMS = 10_000
ROWS, INFO = "rows.arrow", "info.json"


@dataclass(frozen=True)
class RenderedSource:
    """The rows of a source.

    Attributes:
        rows: memory-mapped, columns of their kind; `example` counts the source's examples.
        examples: how many examples there are, kept or not.
        counts: sums over them.
        fingerprint: sha256 over bytes, options and vocabulary.
        cached: whether they were rendered before.
        dropped: its bad rows, if any were left out.
    """

    rows: datasets.Dataset
    examples: int
    counts: Counts
    fingerprint: str
    cached: bool
    dropped: DroppedRows | None = None


@dataclass(frozen=True)
class _Task:
    """The source that is rendered."""

    path: str
    files: list[Path]
    size: int
    drop: bool
    """True if bad rows are left out rather than refused."""


@dataclass(frozen=True)
class _Job:
    """Everything that a process needs to render a chunk."""

    reading: Reading
    options: DataOptions
    model: Path | None
    kind: RowKind


def render_source(
    source: SourceOptions,
    options: DataOptions,
    vocabulary: Vocabulary,
    model: Path | None,
    hub: bool = False,
    kind: RowKind = CONVERSATIONS,
) -> RenderedSource:
    """Renders the rows of a source, or finds them in the cache.

    Memory does not grow with the source: chunks are read, rendered and written a few at a time.

    Args:
        source: what to read.
        options: how to render it.
        vocabulary: of the model.
        model: folder from which workers load the same vocabulary; None for the packaged one.
        hub: whether a dataset may be read from the Hub; it is rendered anew each time.
        kind: what its examples become.

    Raises:
        DataError: every bad row, up to `MAX_PROBLEMS`, unless such rows are left out; no row is
            good; nothing is kept.
    """
    found = find_files(source, hub)
    fingerprint = _fingerprint(source, found, options, vocabulary, kind)
    folder = cache_folder(options.cache) / "rendered" / f"{fingerprint}-{code_version()}"
    cached = bool(found.files) and (folder / INFO).is_file()
    if not cached:
        size = sum(file.stat().st_size for file in found.files)
        job = _Job(source.reading, options, model, kind)
        chunks = assembled(read_source(source, hub, found), job.reading)
        results = _rendered(chunks, job, vocabulary, size)
        task = _Task(source.path, found.files, size, options.on_bad == "drop")
        _keep(folder, task, results, kind.schema)
    return _kept(folder, _places(source.path, found.files), fingerprint, cached)


def _places(path: str, files: Sequence[Path]) -> list[str]:
    """Returns what the places of a source's rows begin with."""
    return [str(file) for file in files] or [path]


def _kept(folder: Path, places: list[str], fingerprint: str, cached: bool) -> RenderedSource:
    """Opens rendered rows; what is said of their places is said of the files of today."""
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    rows, counts = datasets.Dataset.from_file(str(folder / ROWS)), _counts(info["counts"])
    counts.first_bad = {
        cause: moved(where, info["places"], places) for cause, where in counts.first_bad.items()
    }
    dropped = DroppedRows(folder / DROPPED, info["places"], places) if counts.bad else None
    return RenderedSource(rows, info["examples"], counts, fingerprint, cached, dropped)


def _keep(folder: Path, task: _Task, results: Iterator[RowChunkResult], schema: pa.Schema) -> None:
    """Writes the rows and their counts to `folder`, whole or not at all."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with atomic_folder(folder) as temporary:
            examples, counts = _write(results, temporary, schema, task)
            places = _places(task.path, task.files)
            info = {"examples": examples, "counts": vars(counts), "places": places}
            (temporary / INFO).write_text(json.dumps(info), encoding="utf-8")
    except OSError:
        # Another run may have rendered the same data meanwhile; what it wrote is as good.
        if not (folder / INFO).is_file():
            raise


def _counts(values: dict[str, object]) -> Counts:
    counts = Counts()
    for item in fields(Counts):
        mine = getattr(counts, item.name)
        setattr(counts, item.name, type(mine)(values[item.name]))
    return counts


def _write(
    results: Iterator[RowChunkResult], folder: Path, schema: pa.Schema, task: _Task
) -> tuple[int, Counts]:
    """Writes the batches in order, and the bad rows that are left out; returns the number of
    examples and the sums.
    """
    examples, counts, bad, broken = 0, Counts(), list[BadRow](), list[Problem]()
    with (
        pa.OSFile(str(folder / ROWS), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
        open_lines(folder / DROPPED, "w") as dropped,
        tqdm(total=task.size, desc="rendering", unit="B", unit_scale=True, disable=None) as bar,
    ):
        done = 0
        for result in _until_broken(results, bad, broken, task.drop):
            counts.add(result.counts)
            if task.drop:
                bad += _leave_out(result.bad, counts, dropped)
            writer.write_batch(_numbered(result.batch, examples))
            examples += result.examples
            bar.update(result.done - done if result.done > done else result.done)
            done = result.done
    if not counts.bad:
        (folder / DROPPED).unlink()
    _check(task, examples, counts, bad, broken)
    return examples, counts


def _leave_out(bad: list[BadRow], counts: Counts, file: IO[str]) -> list[BadRow]:
    """Counts bad rows and writes them to a file; returns those of a new cause."""
    write_bad(bad, file)
    new = []
    for row in bad:
        if row.cause not in counts.bad:
            new.append(row)
        count_bad(counts, row)
    return new


def _check(
    task: _Task, examples: int, counts: Counts, bad: list[BadRow], broken: list[Problem]
) -> None:
    """Refuses what was not left out, and a source in which no row is good."""
    problems = [problem for row in bad for problem in row.problems]
    if task.drop and counts.bad and not examples and not broken:
        raise every_row_is_bad(task.path, counts, problems)
    if not task.drop:
        broken = [*refused(problems, some_are_good=examples > 0), *broken]
    if broken:
        raise DataError(broken)


def _until_broken(
    results: Iterator[RowChunkResult], bad: list[BadRow], broken: list[Problem], drop: bool
) -> Iterator[RowChunkResult]:
    """Yields the results until there are too many bad rows, unless these are left out, and collects
    them and the problems of files.
    """
    try:
        for result in results:
            bad += [] if drop else result.bad
            if len(bad) > MAX_PROBLEMS and not drop:
                return
            yield result
    except DataError as error:
        broken += error.problems


def _numbered(batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
    """Numbers the examples of a batch from `first`."""
    place = batch.schema.get_field_index("example")
    numbers = pa.array(batch.column(place).to_numpy() + first, pa.int32())
    return batch.set_column(place, batch.schema.field(place), numbers)


def _rendered(
    chunks: Iterator[RowChunk], job: _Job, vocabulary: Vocabulary, size: int
) -> Iterator[RowChunkResult]:
    """Yields the results of all chunks in order, from as many processes as pay off."""
    workers = job.options.workers or (_cpus() if size >= PARALLEL_BYTES else 1)
    if workers == 1:
        renderer = Renderer(vocabulary, job.options.render)
        for chunk in chunks:
            yield render_chunk(chunk, job.reading, job.kind, renderer, job.options)
        return
    method = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(workers, multiprocessing.get_context(method)) as pool:
        pending: deque[Future[RowChunkResult]] = deque()
        for chunk in islice(chunks, workers * CHUNKS_IN_FLIGHT):
            pending.append(pool.submit(_render_in_worker, chunk, job))
        while pending:
            yield pending.popleft().result()
            for chunk in islice(chunks, 1):
                pending.append(pool.submit(_render_in_worker, chunk, job))


def _render_in_worker(chunk: RowChunk, job: _Job) -> RowChunkResult:
    renderer = _worker_renderer(job.model, json.dumps(asdict(job.options.render)))
    return render_chunk(chunk, job.reading, job.kind, renderer, job.options)


@lru_cache(maxsize=1)
def _worker_renderer(model: Path | None, render: str) -> Renderer:
    """Makes one renderer per process; a forked one finds the vocabulary loaded."""
    vocabulary = load_vocabulary(model) if model else packaged_vocabulary()
    return Renderer(vocabulary, RenderOptions(**json.loads(render)))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _fingerprint(
    source: SourceOptions,
    found: Found,
    options: DataOptions,
    vocabulary: Vocabulary,
    kind: RowKind,
) -> str:
    reading = source.reading
    settings = {
        "kind": kind.name,
        "files": [sha256_file(file) for file in found.files] or [source.path],
        "types": [file.name.removeprefix(stem_of(file)) for file in found.files],
        "subset": source.subset,
        "split": source.split,
        "notes": found.notes,
        "reading": [reading.format, sorted(reading.columns), sorted(reading.ignore)],
        "render": asdict(options.render),
        "max_length": options.max_length,
        "on_too_long": options.on_too_long,
        "without_analysis": options.without_analysis,
        "on_bad": options.on_bad,
        "on_rated": options.on_rated,
        "vocabulary": vocabulary.identity,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def code_version() -> str:
    """Changes with every line of the code that turns files into rows, but not with the preview."""
    return code_digest("harmony", "data")
