"""A prepared run: everything that a run needs and can be refused for, before weights are loaded.

Nothing is written but the cache of rendered rows until `open_run` makes the run's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainingArguments

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import Adapter
from gptoss_ft.adapters.start import adapter_fingerprint, continued, described, open_start
from gptoss_ft.checkpoint.digests import combined_fingerprint, tensor_digests
from gptoss_ft.checkpoint.headers import Checkpoint, open_checkpoint
from gptoss_ft.checkpoint.locate import locate_checkpoint
from gptoss_ft.context import Say
from gptoss_ft.data.bad import DroppedRows, keep_dropped
from gptoss_ft.data.dataset import check_data
from gptoss_ft.errors import RunError, gather
from gptoss_ft.harmony.vocabulary import load_vocabulary, packaged_vocabulary
from gptoss_ft.model.tiny import describe_tiny, write_tiny
from gptoss_ft.train.folder import RunFolder, check_run_folder, keep_config, make_folder
from gptoss_ft.train.manifest import RUNNING, Manifest, versions, write_manifest
from gptoss_ft.train.methods import METHODS, Method, imported, method_named
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.resume import (
    fingerprint_problems,
    permitted_changes,
    setting_problems,
    settings_of,
)
from gptoss_ft.train.settings import configure


class TrainingData(Protocol):
    """Rendered data of any method."""

    @property
    def fingerprint(self) -> str:
        """Identifies what the rows hold and how they were rendered."""

    @property
    def summary(self) -> Any:
        """A dataclass of counts, with `lines()` for people."""

    @property
    def dropped(self) -> Sequence[DroppedRows]:
        """The bad rows that were left out, by source."""


@dataclass(frozen=True)
class Base:
    """The base of a run; a tiny one may not be written yet, and is then described by its sizes."""

    checkpoint: Checkpoint
    """Configuration and headers."""

    digests: Mapping[str, str] = field(default_factory=dict)
    """The `tensor_digests`; empty while it is not written."""

    @property
    def is_written(self) -> bool:
        """True if its files are there."""
        return bool(self.digests)

    @property
    def fingerprint(self) -> str:
        """Identifies its weights; empty while it is not written."""
        return combined_fingerprint(self.digests) if self.digests else ""


@dataclass(frozen=True)
class PreparedRun:
    """A run without problems."""

    options: TrainOptions
    """The run's settings; `adapter` as the adapter to go on from has it."""

    method: Method
    """The training method."""

    folder: RunFolder
    """The folder that it writes."""

    arguments: TrainingArguments
    """TRL's configuration."""

    base: Base
    """The base."""

    start: Adapter | None
    """The adapter to go on from; None for a fresh one."""

    start_fingerprint: str | None
    """Identifies it."""

    before: Manifest | None
    """The manifest of a run that is resumed; None for one that starts."""

    data: TrainingData | None = None
    """Rendered rows; None where they were not asked for."""

    @property
    def rendered(self) -> Any:
        """The data, in the method's own class.

        Raises:
            ValueError: the run was prepared without data.
        """
        if self.data is None:
            raise ValueError("the run was prepared without its data")
        return self.data

    def settings(self) -> dict[str, Any]:
        """Returns every setting by its dotted key."""
        return settings_of(self.options, self.arguments)


def prepare(
    options: TrainOptions,
    say: Say,
    methods: Sequence[Method] = METHODS,
    with_data: bool = True,
) -> PreparedRun:
    """Refuses what can be refused before weights are loaded, and reads what the run is made of.

    The run's folder, TRL's settings, the base's headers, the adapter to go on from and the first
    rows of the data are checked together; then what depends on several of them; then all rows.

    Args:
        options: without problems (`options.problems()` is empty).
        say: prints a line for people.
        methods: the table that the method is looked up in.
        with_data: whether data files are read.

    Raises:
        GptOssFtError: with every problem.
    """
    method = method_named(options.method, methods)
    folder = RunFolder(Path(options.output) / options.name)
    before, arguments, base, start, _ = gather(
        lambda: check_run_folder(folder, options.resume),
        lambda: configure(options, method, folder.checkpoints),
        lambda: find_base(options),
        lambda: open_start(options.adapter),
        lambda: check_data(options.data, options.hub) if with_data else None,
    )
    if start is not None:
        options = replace(options, adapter=continued(options.adapter, start))
    digest = adapter_fingerprint(start) if start else None
    run = PreparedRun(options, method, folder, arguments, base, start, digest, before)
    gather(lambda: _check_start(run), lambda: _check_settings(run), lambda: _check_base(run))
    if start is not None:
        say(f"going on from {start.path} ({described(options.adapter)})")
    return _with_data(run, say) if with_data else run


def find_base(options: TrainOptions) -> Base:
    """Opens the base, whose experts must be packed, or describes a tiny one that is not there yet.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not whole.
    """
    path = Path(options.model.path)
    if options.model.tiny is not None and not path.exists():
        return Base(describe_tiny(path, options.model.tiny))
    located = locate_checkpoint(options.model.path, options.hub, "model.path")
    checkpoint = open_checkpoint(located).require_packed()
    return Base(checkpoint, tensor_digests(checkpoint))


def _check_start(run: PreparedRun) -> None:
    """Refuses an adapter to go on from that does not fit the base."""
    if run.start is not None and run.base.is_written:
        check_adapter(run.start, run.base.checkpoint, run.base.digests)


def _check_settings(run: PreparedRun) -> None:
    """Refuses to resume with other settings, or from another adapter to begin with."""
    if run.before is not None:
        found = setting_problems(run.before, run.method.name, run.settings())
        found += fingerprint_problems(run.before, init_fingerprint=run.start_fingerprint)
        if found:
            raise RunError(found)


def _check_base(run: PreparedRun) -> None:
    """Refuses to resume on another base."""
    if run.before is not None and run.base.is_written:
        found = fingerprint_problems(run.before, base_fingerprint=run.base.fingerprint)
        if found:
            raise RunError(found)


def _with_data(run: PreparedRun, say: Say) -> PreparedRun:
    """Renders the rows or finds them in the cache, and says what they are.

    Raises:
        GptOssFtError: rows that cannot be used, or others than the run was started with.
    """
    options, method = run.options, run.method
    model = run.base.checkpoint.path if run.base.is_written else None
    vocabulary = load_vocabulary(model) if model else packaged_vocabulary()
    data = imported(method.data)(options, vocabulary, model)
    warnings = imported(method.warnings)(options, data) if method.warnings else []
    for line in [*data.summary.lines(), *warnings]:
        say(line)
    if run.before is not None:
        found = fingerprint_problems(run.before, data_fingerprint=data.fingerprint)
        if found:
            raise RunError(found)
    return replace(run, data=data)


def open_run(run: PreparedRun, config_yaml: str) -> tuple[PreparedRun, Manifest]:
    """Writes a tiny base that is not there yet, and makes the run's folder or takes it up again.

    The rows that were left out of the data are written to it.

    Args:
        run: prepared with its data.
        config_yaml: the composed configuration, kept beside the results.

    Returns:
        the run with its base as it is written, and the manifest in the folder.

    Raises:
        GptOssFtError: a tiny base, written only now, does not fit the adapter to go on from or the
            run that is resumed.
    """
    if not run.base.is_written:
        run = replace(run, base=_written(run.options))
        gather(lambda: _check_start(run), lambda: _check_base(run))
    manifest, changed = _manifest(run), None
    if run.before is not None:
        changed = permitted_changes(run.before, manifest.settings)
        manifest = replace(manifest, settings=run.before.settings)
    make_folder(run.folder)
    write_manifest(run.folder.manifest, manifest)  # first: it is what makes the folder a run
    keep_config(run.folder, config_yaml, changed)
    keep_dropped(run.rendered.dropped, run.folder.dropped)
    return run, manifest


def _written(options: TrainOptions) -> Base:
    """Writes the tiny base, unless another run has written it meanwhile, and opens it."""
    path = Path(options.model.path)
    if options.model.tiny is not None and not path.exists():
        write_tiny(path, options.model.tiny)
    return find_base(options)


def _manifest(run: PreparedRun) -> Manifest:
    options, data = run.options, run.rendered
    return Manifest(
        name=options.name,
        method=run.method.name,
        status=RUNNING,
        base=str(options.model.path),
        base_fingerprint=run.base.fingerprint,
        data=[source.path for source in options.data.training_sources],
        data_fingerprint=data.fingerprint,
        adapter=asdict(options.adapter),
        init_fingerprint=run.start_fingerprint,
        seed=options.seed,
        data_summary=asdict(data.summary),
        versions=versions(),
        settings=run.settings(),
    )
