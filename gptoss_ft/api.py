"""The functions of the public API, for notebooks and scripts; see docs/api.md.

Each is a thin layer over the room that does the work. They take the dataclasses that the commands
take, raise the same errors, and return what was found or written instead of an exit code. Unlike
the commands they leave the environment of the process as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_ft.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    import torch

    from gptoss_ft.adapters.model import AdaptedModel
    from gptoss_ft.data.rows import ParsedRow
    from gptoss_ft.export.options import ExportOptions
    from gptoss_ft.generate.command import Answer
    from gptoss_ft.generate.options import GenerateOptions
    from gptoss_ft.harmony.options import RenderOptions
    from gptoss_ft.harmony.render import Renderer, Row
    from gptoss_ft.merge.options import MergeOptions
    from gptoss_ft.merge.stream import MergeResult
    from gptoss_ft.model.causal_lm import WeightedGptOss
    from gptoss_ft.train.manifest import RunResult
    from gptoss_ft.train.options import TrainOptions
    from gptoss_ft.verify.measure import Verification
    from gptoss_ft.verify.options import VerifyOptions


def load_model(
    path: str | Path, *, device: str | torch.device | None = None, hub: bool = False
) -> WeightedGptOss:
    """Loads a checkpoint with frozen weights, ready for an adapter.

    Packed experts stay packed and files stay memory-mapped; the model computes in bfloat16 on a GPU
    and in float32 on a CPU. It is a transformers model, `GptOssForCausalLM` by its base class.

    Args:
        path: checkpoint folder, packed or dense, or a Hub id with `hub=True`.
        device: None takes the GPU when there is one.
        hub: whether the network may be used to download the checkpoint.

    Raises:
        CheckpointError: no folder, or not a whole gpt-oss checkpoint.
    """
    import torch

    from gptoss_ft.checkpoint.headers import open_checkpoint
    from gptoss_ft.checkpoint.locate import locate_checkpoint
    from gptoss_ft.model.load import load_model as load

    checkpoint = open_checkpoint(locate_checkpoint(str(path), hub, "path"))
    return load(checkpoint, None if device is None else torch.device(device))


def load_adapter(
    model: WeightedGptOss, path: str | Path, *, trainable: bool = False
) -> AdaptedModel:
    """Puts a saved adapter on a loaded model, after checking that it was trained on that base.

    The result is a PEFT model; `disable_adapter()` gives the base's logits back.

    Args:
        model: what `load_model` returned for a packed checkpoint; it becomes part of the result.
        path: adapter folder.
        trainable: whether its tensors take gradients.

    Raises:
        AdapterError: a broken folder, or an adapter of another base.
    """
    from gptoss_ft.adapters.check import check_adapter
    from gptoss_ft.adapters.files import open_adapter
    from gptoss_ft.adapters.model import load_adapter as load
    from gptoss_ft.checkpoint.headers import open_checkpoint

    adapter = open_adapter(Path(path))
    check_adapter(adapter, open_checkpoint(_folder(model)).require_packed())
    return load(model, adapter, trainable=trainable)


def read_rows(
    path: str | Path,
    format: str = "",  # as in the setting `data.format`
    *,
    hub: bool = False,
    subset: str = "",
    split: str = "",
    map: str = "",
    columns: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> Iterator[ParsedRow]:
    """Reads data files of any format, row by row.

    Args:
        path: a file, a folder of files, or a dataset's Hub name with `hub=True`.
        format: name of the format; empty detects it row by row.
        hub: whether the network may be used.
        subset, split: of a Hub dataset or a folder, as in the settings `data.subset`, `data.split`.
        map, columns, ignore: what its columns are, as in `data.map`, `data.columns`, `data.ignore`.

    Yields:
        where the row stands (`file:line`), its format, its example (a conversation, preference
        pair, rated completion or document), notes, and how each column was read.

    Raises:
        DataError: after the last good row, with the problems of all bad ones; at once for a file
            that cannot be read.
        ConfigError: an unknown format or map.
    """
    from gptoss_ft.data.options import SourceOptions
    from gptoss_ft.data.rows import read_examples

    source = SourceOptions(
        str(path),
        subset=subset,
        split=split,
        format=format,
        map=map,
        columns=columns,
        ignore=[*ignore],
    )
    if problems := source.problems("read_rows"):
        raise ConfigError(problems)
    yield from read_examples(source, problems, hub, needs_answer=False)
    if problems:
        raise DataError(problems)


def render(
    rows: Iterable[ParsedRow], model: str | Path = "", options: RenderOptions | None = None
) -> Iterator[Row]:
    """Renders rows in Harmony, as training does before it drops, shortens or packs any.

    A conversation gives a row for each stretch of sampling actions that share their history, a
    preference pair a row each for chosen and rejected, in this order.

    Args:
        rows: what `read_rows` yields.
        model: checkpoint folder whose tokenizer is used; empty for the packaged one, which is that
            of the released models.
        options: how to render and what to train; None for the defaults.

    Yields:
        rows with `input_ids`, `labels` (at the position of the token they name, -100 where nothing
        is trained), `loss_weights`, and `segments`, which say what each position is.

    Raises:
        DataError: after the last good row, with the problems of those that cannot be rendered.
        ConfigError: options out of range.
    """
    from gptoss_ft.harmony.options import RenderOptions
    from gptoss_ft.harmony.render import Renderer
    from gptoss_ft.harmony.vocabulary import load_vocabulary, packaged_vocabulary

    options = options or RenderOptions()
    if problems := options.problems("options"):
        raise ConfigError(problems)
    vocabulary = load_vocabulary(Path(model)) if model else packaged_vocabulary()
    renderer = Renderer(vocabulary, options)
    for row in rows:
        try:
            yield from _rendered(row, renderer)
        except DataError as error:
            problems += [replace(p, where=p.where or row.where) for p in error.problems]
    if problems:
        raise DataError(problems)


def _rendered(row: ParsedRow, renderer: Renderer) -> list[Row]:
    """Renders the training rows of one example."""
    from gptoss_ft.harmony.messages import Document, Feedback, HarmonyText, Preference

    example = row.example
    if isinstance(example, Preference):
        return renderer.completions(example.prompt, [example.chosen, example.rejected])
    if isinstance(example, Feedback):
        return [renderer.completion(example.prompt, example.completion)]
    if isinstance(example, Document):
        return renderer.render_document(example)
    if isinstance(example, HarmonyText):
        return renderer.render_harmony(example, row.where)
    return renderer.render(example)


def compose(*arguments: str, config_dir: str | Path | None = None) -> TrainOptions:
    """Composes the options of a run from a recipe and settings, as the command `train` does.

    Args:
        arguments: what would follow `gptoss-ft train`, such as `"sft=lora_20b"`.
        config_dir: folder of recipes of your own, as with `--config-dir`.

    Raises:
        ConfigError: every unknown setting and choice with the nearest known one, values of the
            wrong type.
    """
    from gptoss_ft.commands import COMMANDS
    from gptoss_ft.config import compose_options

    command = next(command for command in COMMANDS if command.name == "train")
    options: TrainOptions = compose_options(command, arguments, config_dir)
    return options


def train(options: TrainOptions, say: Callable[[str], None] = print) -> RunResult:
    """Tunes a base on conversations, pairs or ratings, and writes the run's folder.

    Args:
        options: from `compose`, or built by hand; `preference` chooses preference tuning.
        say: takes lines for people, one at a time.

    Returns:
        the result; `adapter` is the folder of the trained adapter.

    Raises:
        GptOssFtError: settings, run folder, base, adapter or data that cannot be used, before the
            weights are loaded.
    """
    from gptoss_ft.config import options_to_yaml
    from gptoss_ft.train.run import train as run_training

    if problems := options.problems():
        raise ConfigError(problems)
    return run_training(options, options_to_yaml(options), say)


def merge(options: MergeOptions) -> MergeResult:
    """Merges adapters into a base, shard by shard, or goes on with a merge that was interrupted.

    Returns:
        what was written. Where `problems` is not empty, rounding lost more than the limit, and the
        checkpoint was left without its manifest.

    Raises:
        MergeError: refused, with nothing written, or the disk is full.
    """
    from gptoss_ft.merge.plan import plan_merge
    from gptoss_ft.merge.stream import merge as write

    _refuse_command_settings(options, "dry_run")
    return write(plan_merge(options))


def verify(options: VerifyOptions) -> Verification:
    """Measures how much of a fine-tune a merged checkpoint keeps.

    Returns:
        everything that was found; `kept` is the share of the fine-tune, `ok` whether it passes.

    Raises:
        GptOssFtError: settings, folders or rows that cannot be used; before weights are read.
    """
    from gptoss_ft.verify.measure import verify as measure

    _refuse_command_settings(options, "out")
    return measure(options)


def export(options: ExportOptions) -> Path:
    """Writes a checkpoint, or an adapter, in the files of another runtime.

    Returns:
        the file that says how to serve `options.place`, which is what was written.

    Raises:
        ExportError: refused, or stopped by the disk; nothing is under the output's name.
    """
    from gptoss_ft.export.command import plan_export, write_export

    _refuse_command_settings(options, "dry_run")
    return write_export(plan_export(options))


def generate(
    options: GenerateOptions, model: WeightedGptOss | AdaptedModel | None = None
) -> list[Answer]:
    """Asks a model and parses its answers by channel.

    Args:
        options: what to ask, and which model unless one is given.
        model: what `load_model` or `load_adapter` returned; `options.model` and `options.adapter`
            are then left empty.

    Returns:
        an answer for each question, with `messages` by channel, `final`, and the sampled `ids`.

    Raises:
        GptOssFtError: settings, model, adapter or file that cannot be used.
    """
    from gptoss_ft.generate.command import answers

    _refuse_command_settings(options, "out", "min_exact", "max_exact")
    if model is not None:
        _refuse_settings(options, ("model", "adapter"), "the model is given already")
        options = replace(options, model=str(_folder(model)))
    return list(answers(options, model))


def _folder(model: WeightedGptOss | AdaptedModel) -> Path:
    """Returns the checkpoint folder that a model was loaded from."""
    return Path(str(model.config.name_or_path))


def _refuse_command_settings(options: Any, *names: str) -> None:
    """Refuses settings that only a command can act on, instead of ignoring them."""
    _refuse_settings(options, names, "only the command acts on this setting")


def _refuse_settings(options: Any, names: Iterable[str], what: str) -> None:
    """Refuses those of the named settings that have another value than their default.

    Raises:
        ConfigError: with a problem for each of them.
    """
    defaults = {item.name: item.default for item in fields(options)}
    given = {name: getattr(options, name) for name in names}
    problems = [
        Problem(what, name, repr(value), "leave it out")
        for name, value in given.items()
        if value != defaults[name]
    ]
    if problems:
        raise ConfigError(problems)
