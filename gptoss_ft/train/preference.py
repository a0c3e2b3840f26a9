"""One preference run, from a checked configuration to an adapter on disk."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, Trainer, set_seed
from trl import KTOConfig

from gptoss_ft.adapters.files import Adapter
from gptoss_ft.checkpoint.headers import Checkpoint
from gptoss_ft.data.collate_pairs import PairCollator, RatedCollator
from gptoss_ft.data.options import cache_folder
from gptoss_ft.data.preferences import Groups, PreferenceData, prepare_pairs, prepare_ratings
from gptoss_ft.harmony.vocabulary import load_vocabulary
from gptoss_ft.train.methods import method_named
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.preference_options import PreferenceOptions, estimates_divergence
from gptoss_ft.train.reference import Reference, training_rows
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
from gptoss_ft.train.trainers.dpo import PairDPOTrainer
from gptoss_ft.train.trainers.kto import RatedKTOTrainer
from gptoss_ft.train.trainers.reference_free import ORPOTrainer, SimPOTrainer

# Weighted good completions for one weighted bad one, of which KTO works well (Ethayarajh et al.
# 2024, equation 8).
BALANCE = (1.0, 4 / 3)


def train_preference(options: TrainOptions, config_yaml: str, say: Say = print) -> Path:
    """Runs preference tuning and returns the adapter's folder.

    Everything that can be refused is refused before the weights are loaded: the run folder, the
    base's headers, the adapter to go on from and the data, all of their problems at once.

    Args:
        options: with `preference`, without problems (`options.problems()` is empty).
        config_yaml: the composed configuration, kept beside the results.
        say: where lines for people go.

    Raises:
        GptOssFtError: a run folder, checkpoint, adapter or data file that cannot be used.
    """
    preference = options.preference or PreferenceOptions()
    folder = RunFolder(Path(options.output) / options.name)
    method = method_named(preference.method)
    configuration = configure(options, method, folder.checkpoints)
    options, checkpoint, adapter = find_base(options, folder, say)
    data = prepare_data(options, preference, checkpoint)
    for line in [*data.summary.lines(), *_imbalance(data, options.trainer)]:
        say(line)
    manifest = run_manifest(options, checkpoint, data, adapter)
    open_run(folder, manifest, config_yaml, options.resume)

    set_seed(options.seed)
    model = build_model(options, checkpoint, manifest["base_fingerprint"], adapter)
    say_parameters(model, say)
    reference = _reference(options, preference, manifest, adapter)
    home = cache_folder(options.data.cache) / "preference"
    train, validation = training_rows(data, model, reference, home, say)
    arguments: dict[str, Any] = {
        "args": configuration,
        "model": model,
        "train_dataset": train,
        "eval_dataset": validation,
        "processing_class": AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True),
        "callbacks": callbacks(options, folder),
    }
    trainer = build_trainer(preference, arguments)
    return run_trainer(trainer, folder, options, manifest, say)


def prepare_data(
    options: TrainOptions, preference: PreferenceOptions, checkpoint: Checkpoint
) -> PreferenceData:
    """The rows that the method trains on."""
    vocabulary = load_vocabulary(checkpoint.path)
    if not preference.is_rated:
        return prepare_pairs(options.data, vocabulary, checkpoint.path, options.hub)
    groups = None
    if estimates_divergence(options.trainer):
        groups = Groups(*(_batch_size(options.trainer, part) for part in ("train", "eval")))
    return prepare_ratings(options.data, vocabulary, groups, checkpoint.path, options.hub)


def _batch_size(trainer: dict[str, Any], part: str) -> int:
    """Rows of a batch in training or evaluation, TRL's own number where none is given."""
    name = f"per_device_{part}_batch_size"
    (default,) = (item.default for item in fields(KTOConfig) if item.name == name)
    return int(trainer.get(name, default))


def _imbalance(data: PreferenceData, trainer: dict[str, Any]) -> list[str]:
    """A warning where good and bad completions do not weigh about the same."""
    good = data.summary.good
    if good is None or not 0 < good < data.summary.train_rows:
        return []
    bad = data.summary.train_rows - good
    weights = trainer.get("desirable_weight", 1.0), trainer.get("undesirable_weight", 1.0)
    ratio = good * weights[0] / (bad * weights[1])
    if BALANCE[0] <= ratio <= BALANCE[1]:
        return []
    wanted = [bad * weights[1] / good * bound for bound in BALANCE]
    return [
        f"warning: good completions weigh {ratio:.2f} times what bad ones do; KTO works best "
        f"between {BALANCE[0]:.2f} and {BALANCE[1]:.2f}: set trainer.desirable_weight between "
        f"{wanted[0]:.2f} and {wanted[1]:.2f}"
    ]


def _reference(
    options: TrainOptions,
    preference: PreferenceOptions,
    manifest: dict[str, Any],
    adapter: Adapter | None,
) -> Reference | None:
    """The base, or the adapter that training goes on from; None for methods without one."""
    if not preference.needs_reference:
        return None
    return Reference(
        base=manifest["base_fingerprint"],
        adapter=manifest["init_fingerprint"] if adapter else "",
        home=cache_folder(options.data.cache) / "reference",
        shared_prompt=preference.shared_prompt,
        tokens_at_once=options.data.max_length,
    )


def build_trainer(preference: PreferenceOptions, arguments: dict[str, Any]) -> Trainer:
    """TRL's trainer of the method around our model, rows and monitor.

    Args:
        preference: the method.
        arguments: of any trainer, without the collator.
    """
    normalized = preference.length_normalized
    if preference.is_rated:
        return RatedKTOTrainer(data_collator=RatedCollator(normalized), **arguments)
    arguments |= {"data_collator": PairCollator(preference.shared_prompt, normalized)}
    if preference.method == "orpo":
        return ORPOTrainer(**arguments)
    if preference.method == "simpo":
        return SimPOTrainer(**arguments, gamma=preference.simpo_gamma)
    return PairDPOTrainer(**arguments)
