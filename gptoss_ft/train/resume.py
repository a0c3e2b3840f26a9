"""Checks that a resumed run shares everything with its start but a short list of settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from transformers import TrainingArguments

from gptoss_ft.errors import Problem
from gptoss_ft.train.manifest import Manifest
from gptoss_ft.train.options import TrainOptions

# Settings that a resumed run may change. Evaluation is not among them: it decides which checkpoint
# is the best one, and when a run stops early.
MAY_CHANGE = (
    # where the run is
    *("name", "output", "resume", "hub"),
    # where base, adapter and data are; their fingerprints are compared
    *("model.path", "model.tiny", "model.tiny.*", "adapter.init"),
    *("data.path", "data.format", "data.subset", "data.split", "data.sources"),
    *("data.validation_path", "data.validation.*"),
    # logging and tracking
    *("tracker.*", "trainer.report_to", "trainer.project", "trainer.trackio_*"),
    *("trainer.logging_*", "trainer.log_level*", "trainer.log_on_each_node"),
    *("trainer.disable_tqdm", "trainer.skip_memory_metrics"),
    # saving; with validation rows `trainer.eval_steps` and `eval_strategy` follow it, which may not
    *("trainer.save_strategy", "trainer.save_steps", "trainer.save_total_limit"),
    "trainer.save_on_each_node",
    # memory and speed, with the same numbers up to rounding
    *("model.save_pre_activation", "trainer.use_cpu"),
    *("trainer.gradient_checkpointing*", "trainer.activation_checkpointing*"),
    *("data.workers", "data.cache", "trainer.dataloader_num_workers"),
    *("trainer.dataloader_pin_memory", "trainer.dataloader_persistent_workers"),
    *("trainer.dataloader_prefetch_factor", "trainer.torch_empty_cache_steps"),
)
# What the fingerprints are of, each with the setting that names it.
FINGERPRINTS = {
    "base_fingerprint": "model.path",
    "init_fingerprint": "adapter.init",
    "data_fingerprint": "data",
}
_OTHER = "this run was started with another value"


def settings_of(options: TrainOptions, arguments: TrainingArguments) -> dict[str, Any]:
    """Returns every setting of a run by its dotted key, as JSON values.

    The trainer's own names for `seed`, `name` and the run's folder are left out.

    Args:
        options: the run's own; `adapter` as the adapter to go on from has it.
        arguments: what the trainer gets, defaults included, in place of `options.trainer`.
    """
    chosen = asdict(options) | {"trainer": json.loads(arguments.to_json_string())}
    for name in ("seed", "data_seed", "run_name", "output_dir"):
        del chosen["trainer"][name]
    return _flattened(json.loads(json.dumps(chosen)))


def _flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= _flattened(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def setting_problems(before: Manifest, method: str, settings: dict[str, Any]) -> list[Problem]:
    """Lists the settings that differ from the start of a run and must not.

    Args:
        before: the manifest of the run.
        method: the method that it is to be resumed with; its settings are not compared when it
            is another one.
        settings: what `settings_of` returned.
    """
    if before.method != method:
        return [_problem("preference.method", method, before.method)]
    return [
        _problem(key, value, before.settings.get(key))
        for key, value in _changed(before, settings).items()
        if not _may_change(key)
    ]


def permitted_changes(before: Manifest, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the new values of the settings that differ from the start of a run and may."""
    changed = _changed(before, settings)
    return {key: value for key, value in changed.items() if _may_change(key) and key != "resume"}


def fingerprint_problems(before: Manifest, **found: str | None) -> list[Problem]:
    """Lists the fingerprints, any of `FINGERPRINTS`, that differ from the start of a run."""
    return [
        Problem(
            _OTHER,
            f"{key} ({FINGERPRINTS[key]})",
            f"{value}, before: {getattr(before, key)}",
            "resume with the same model, data and adapter, or start a new run",
        )
        for key, value in found.items()
        if value != getattr(before, key)
    ]


def _changed(before: Manifest, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the new values of all settings that differ; one that is missing counts as None."""
    keys = dict.fromkeys((*settings, *before.settings))
    return {key: settings.get(key) for key in keys if settings.get(key) != before.settings.get(key)}


def _may_change(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in MAY_CHANGE)


def _problem(key: str, now: Any, before: Any) -> Problem:
    mend = "resume with the value of the start, or start a new run under another name=NAME"
    return Problem(_OTHER, key, f"{json.dumps(now)}, before: {json.dumps(before)}", mend)
