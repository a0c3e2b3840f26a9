"""One SFT run, from a checked configuration to an adapter on disk."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, TrainingArguments, set_seed

from gptoss_ft.adapters.model import AdaptedModel
from gptoss_ft.checkpoint.headers import Checkpoint
from gptoss_ft.data.collate import Collator
from gptoss_ft.data.dataset import PreparedData, prepare
from gptoss_ft.harmony.vocabulary import load_vocabulary
from gptoss_ft.train.methods import method_named
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.run import RunFolder, open_run
from gptoss_ft.train.settings import configure
from gptoss_ft.train.steps import (
    Say,
    build_model,
    callbacks,
    find_base,
    run_manifest,
    run_trainer,
    say_parameters,
)
from gptoss_ft.train.trainers.sft import WeightedSFTTrainer


def train_sft(options: TrainOptions, config_yaml: str, say: Say = print) -> Path:
    """Runs supervised fine-tuning and returns the adapter's folder.

    Everything that can be refused is refused before the weights are loaded: the run folder, the
    base's headers and the data, all of their problems at once.

    Args:
        options: without problems (`options.problems()` is empty).
        config_yaml: the composed configuration, kept beside the results.
        say: where lines for people go.

    Raises:
        GptOssFtError: a run folder, checkpoint, adapter or data file that cannot be used.
    """
    folder = RunFolder(Path(options.output) / options.name)
    arguments = configure(options, method_named("sft"), folder.checkpoints)
    options, checkpoint, adapter = find_base(options, folder, say)
    vocabulary = load_vocabulary(checkpoint.path)
    data = prepare(options.data, vocabulary, checkpoint.path, options.hub)
    for line in data.summary.lines():
        say(line)
    manifest = run_manifest(options, checkpoint, data, adapter)
    open_run(folder, manifest, config_yaml, options.resume)

    set_seed(options.seed)
    model = build_model(options, checkpoint, manifest["base_fingerprint"], adapter)
    say_parameters(model, say)
    trainer = build_trainer(options, model, checkpoint, data, folder, arguments)
    return run_trainer(trainer, folder, options, manifest, say)


def build_trainer(
    options: TrainOptions,
    model: AdaptedModel,
    checkpoint: Checkpoint,
    data: PreparedData,
    folder: RunFolder,
    arguments: TrainingArguments,
) -> WeightedSFTTrainer:
    """TRL's trainer around our model, rows and monitor."""
    return WeightedSFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True),
        data_collator=Collator(),
        callbacks=callbacks(options, folder),
    )
