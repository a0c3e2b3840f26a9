"""A source rendered once: in parallel, straight to Arrow, remembered by what it was made of."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
from tqdm import tqdm

from gptoss_ft.data.assemble import assembled
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.options import DataOptions, SourceOptions, cache_folder
from gptoss_ft.data.read import RowChunk, read_source, source_files
from gptoss_ft.data.rows import CONVERSATIONS, RowChunkResult, RowKind, render_chunk
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
    """

    rows: datasets.Dataset
    examples: int
    counts: Counts
    fingerprint: str
    cached: bool


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
        DataError: every bad row, up to `MAX_PROBLEMS`; nothing is kept.
    """
    files = source_files(source, hub)
    fingerprint = _fingerprint(source, files, options, vocabulary, kind)
    folder = cache_folder(options.cache) / "rendered" / f"{fingerprint}-{code_version()}"
    cached = bool(files) and (folder / INFO).is_file()
    if not cached:
        size = sum(file.stat().st_size for file in files)
        job = _Job(source.reading, options, model, kind)
        results = _rendered(assembled(read_source(source, hub), job.reading), job, vocabulary, size)
        _keep(folder, results, kind.schema, size)
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    rows = datasets.Dataset.from_file(str(folder / ROWS))
    return RenderedSource(rows, info["examples"], _counts(info["counts"]), fingerprint, cached)


def _keep(folder: Path, results: Iterator[RowChunkResult], schema: pa.Schema, size: int) -> None:
    """Writes the rows and their counts to `folder`, whole or not at all."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with atomic_folder(folder) as temporary:
            examples, counts = _write(results, temporary / ROWS, schema, size)
            info = {"examples": examples, "counts": vars(counts)}
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
    results: Iterator[RowChunkResult], file: Path, schema: pa.Schema, size: int
) -> tuple[int, Counts]:
    """Writes the batches in order; returns the number of examples and the sums."""
    examples, counts, problems = 0, Counts(), list[Problem]()
    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
        tqdm(total=size, desc="rendering", unit="B", unit_scale=True, disable=None) as progress,
    ):
        done = 0
        for result in _until_broken(results, problems):
            counts.add(result.counts)
            writer.write_batch(_numbered(result.batch, examples))
            examples += result.examples
            progress.update(result.done - done if result.done > done else result.done)
            done = result.done
    if problems:
        raise DataError(problems)
    return examples, counts


def _until_broken(
    results: Iterator[RowChunkResult], problems: list[Problem]
) -> Iterator[RowChunkResult]:
    """Yields the results until there are too many problems, and collects those of rows and
    files.
    """
    try:
        for result in results:
            problems += result.problems
            if len(problems) > MAX_PROBLEMS:
                return
            yield result
    except DataError as error:
        problems += error.problems


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
    files: list[Path],
    options: DataOptions,
    vocabulary: Vocabulary,
    kind: RowKind,
) -> str:
    reading = source.reading
    settings = {
        "kind": kind.name,
        "files": [sha256_file(file) for file in files] or [source.path, source.split],
        "suffixes": [file.suffix for file in files],
        "reading": [reading.format, sorted(reading.columns), sorted(reading.ignore)],
        "render": asdict(options.render),
        "max_length": options.max_length,
        "on_too_long": options.on_too_long,
        "without_analysis": options.without_analysis,
        "vocabulary": vocabulary.identity,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def code_version() -> str:
    """Changes with every line of the code that turns files into rows, but not with the preview."""
    return code_digest("harmony", "data")
