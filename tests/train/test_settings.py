"""The table of trainer settings: complete, refused with a reason, and what TRL is handed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from small_trainer import adapted
from torch import nn
from trl import SFTConfig

from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import ConfigError
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.methods import METHODS, Method, imported, method_named
from gptoss_ft.train.options import TrackerOptions, TrainOptions
from gptoss_ft.train.preference_options import PreferenceOptions
from gptoss_ft.train.settings import configure, field_names, rows_of, trainer_problems
from gptoss_ft.train.settings_table import DECIDED, DEFAULT, REFUSED, SETTINGS, TrainerSetting

# Settings without a row that TRL or transformers act on in our runs. Before a new one is added
# here, read what the trainers of gptoss_ft/train/trainers make of it.
PASSES = {
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "max_steps", "neftune_noise_alpha"),
    *("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    *("activation_checkpointing", "activation_offloading", "torch_empty_cache_steps"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "tf32", "full_determinism"),
    *("auto_find_batch_size", "ignore_data_skip", "debug", "skip_memory_metrics"),
    *("dataloader_drop_last", "dataloader_in_order", "dataloader_multiprocessing_context"),
    *("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("accelerator_config", "parallelism_config", "deepspeed", "fsdp", "fsdp_config"),
    *("ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters"),
    *("ddp_static_graph", "ddp_timeout"),
    *("eval_accumulation_steps", "eval_delay", "eval_on_start", "eval_use_gather_object"),
    *("save_steps", "save_total_limit", "save_on_each_node", "enable_jit_checkpoint"),
    *("log_level", "log_level_replica", "log_on_each_node", "logging_strategy"),
    "include_num_input_tokens_seen",
}
# Likewise, with some methods; values are checked in preference_options.py.
PASSES_WITH = {
    "dpo": {
        *("loss_type", "loss_weights", "use_weighting", "train_sampling_strategy"),
        *("f_divergence_type", "f_alpha_divergence_coef"),
    },
    "kto": {"loss_type"},
    "orpo": {"train_sampling_strategy"},
    "simpo": {"train_sampling_strategy"},
}
# What had no effect and was taken in silence, with the methods whose TRL configuration has it.
APO = {"loss_type": "apo_zero_unpaired"}
EVERY, SFT, PREFERENCES = ("sft", "dpo", "kto", "orpo", "simpo"), ("sft",), ("dpo", "kto", "orpo")
WITHOUT_EFFECT = {
    **dict.fromkeys(
        (
            *("label_smoothing_factor", "average_tokens_across_devices", "use_cache"),
            *("label_names", "length_column_name", "local_rank", "liger_kernel_config"),
            *("prediction_loss_only", "batch_eval_metrics", "include_for_metrics"),
            *("eval_do_concat_batches", "bf16_full_eval", "fp16_full_eval"),
            *("do_train", "do_eval", "do_predict", "run_name", "project"),
            *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
            *("hub_model_id", "hub_token", "hub_strategy", "hub_private_repo"),
            *("hub_always_push", "hub_revision"),
        ),
        EVERY,
    ),
    **dict.fromkeys(
        (
            *("model_init_kwargs", "dataset_text_field", "pad_to_multiple_of", "pad_token"),
            *("shuffle_dataset", "dataset_num_proc", "truncation_mode", "packing_strategy"),
            *("eval_packing", "eos_token", "chat_template_path", "completion_only_loss"),
            "assistant_only_loss",
        ),
        SFT,
    ),
    "disable_dropout": PREFERENCES,
}


def _options(method: str, **settings: Any) -> TrainOptions:
    preference = None if method == "sft" else PreferenceOptions(method)
    data = settings.pop("data", DataOptions("x", packing=False))
    return TrainOptions("run", data=data, preference=preference, **settings)


def _configure(method: str, **settings: Any) -> Any:
    return configure(_options(method, **settings), method_named(method), Path("checkpoints"))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_setting_of_trl_is_known(method: Method) -> None:
    """A version of TRL or transformers that adds a setting shows up here."""
    fields = field_names(imported(method.trl_config))
    rows = {row.name for row in SETTINGS if not row.methods or method.name in row.methods}
    passed = PASSES | PASSES_WITH.get(method.name, set())
    assert fields - rows - passed == set(), "neither in settings_table.py nor known to pass"
    assert passed - fields == set(), "remove what TRL no longer has"
    assert passed & rows == set()


def test_rows_are_of_settings_that_exist_and_do_not_contradict_each_other() -> None:
    fields = {m.name: field_names(imported(m.trl_config)) for m in METHODS}
    assert {row.name for row in SETTINGS} <= set().union(*fields.values())
    for row in SETTINGS:
        assert all(row.name in fields[method] for method in row.methods), row.name
        assert bool(row.hint) == (row.kind in (DECIDED, REFUSED)), row.name
    variants = [{}, APO, {"save_strategy": "steps", "save_steps": 2}]
    for method in METHODS:
        for packing in (True, False):
            for trainer in variants:
                data = DataOptions("x", packing=packing, validation_split=0.5)
                options = _options(method.name, data=data, trainer=trainer)
                names = [row.name for row in rows_of(method, options)]
                assert len(names) == len(set(names)), method


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in WITHOUT_EFFECT for method in WITHOUT_EFFECT[name]],
)
def test_settings_without_effect_are_refused(name: str, method: str) -> None:
    options = _options(method, trainer={name: True})
    (problem,) = trainer_problems(options, method_named(method))
    assert problem.where == f"trainer.{name}" and problem.mend
    assert problem in options.problems()


@pytest.mark.parametrize(("loss", "taken"), [("nll", True), ("chunked_nll", True), ("dft", False)])
def test_sft_takes_its_own_loss_only(loss: str, taken: bool) -> None:
    found = trainer_problems(_options("sft", trainer={"loss_type": loss}), method_named("sft"))
    assert [problem.where for problem in found] == ([] if taken else ["trainer.loss_type"])


def test_there_is_no_dropout_to_disable(tmp_path: Path) -> None:
    """Neither in the base nor in its adapters; PEFT has a module for it where a rate is set."""
    sizes = {"layers": 1, "hidden_size": 32, "intermediate_size": 32, "heads": 1, "kv_heads": 1}
    write_tiny(tmp_path / "model", TinyOptions(**sizes))
    modules = list(adapted(tmp_path / "model").modules())
    assert len(modules) > 10 and not any(isinstance(module, nn.Dropout) for module in modules)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_run_decides(method: Method) -> None:
    """Its values count, whatever the user says, who is told where to say it."""
    mine = {"seed": 5, "data_seed": 5, "output_dir": "x", "report_to": "all", "run_name": "x"}
    mine |= {"max_length": 5, "bf16": True, "push_to_hub": True}
    options = _options(method.name, seed=3, tracker=TrackerOptions("wandb"), trainer=mine)
    assert len(trainer_problems(options, method)) == len(mine)
    made = configure(options, method, Path("checkpoints"))
    assert type(made) is imported(method.trl_config)
    assert (made.output_dir, made.run_name, made.report_to) == ("checkpoints", "run", ["wandb"])
    assert (made.seed, made.data_seed) == (3, 3)
    assert (made.max_length, made.bf16, made.fp16, made.push_to_hub) == (None, False, False, False)
    assert made.restore_callback_states_from_checkpoint


def test_sft_rows_are_not_prepared_again() -> None:
    made = _configure("sft")
    assert made.dataset_kwargs == {"skip_prepare_dataset": True}
    assert (made.packing, made.padding_free) == (False, False)


@pytest.mark.parametrize(
    ("method", "trainer", "strategy"),
    [
        ("kto", {}, "sequential"),
        ("kto", {**APO, "train_sampling_strategy": "random"}, "random"),
        ("dpo", {}, "random"),
        ("sft", {}, "group_by_length"),
    ],
)
def test_order_of_rows(method: str, trainer: dict[str, Any], strategy: str) -> None:
    assert _configure(method, trainer=trainer).train_sampling_strategy == strategy


def test_the_user_s_settings_count_more_than_our_defaults() -> None:
    made = _configure("dpo")
    assert (made.logging_steps, made.gradient_checkpointing) == (1, False)
    made = _configure("dpo", trainer={"logging_steps": 9, "gradient_checkpointing": True})
    assert (made.logging_steps, made.gradient_checkpointing) == (9, True)


@pytest.mark.parametrize(
    ("trainer", "when", "loads_the_best"),
    [
        ({}, ("epoch", "epoch"), True),
        ({"save_strategy": "steps", "save_steps": 7}, ("steps", "steps"), True),
        ({"save_strategy": "no"}, ("epoch", "no"), False),
        ({"eval_strategy": "steps", "eval_steps": 3}, ("steps", "epoch"), False),
        ({"eval_strategy": "no"}, ("no", "epoch"), False),
    ],
)
def test_checkpoints_are_evaluated_whenever_they_are_saved(
    trainer: dict[str, Any], when: tuple[str, str], loads_the_best: bool
) -> None:
    """Whatever the recipe says of saving, held-out rows never lead to an error of transformers."""
    made = _configure("sft", data=DataOptions("x", validation_split=0.5), trainer=trainer)
    assert (made.eval_strategy.value, made.save_strategy.value) == when
    assert made.load_best_model_at_end == loads_the_best
    if when == ("steps", "steps"):
        assert made.eval_steps == made.save_steps == 7


@pytest.mark.parametrize("trainer", [{"optim": "adamm"}, {"no_such_setting": 1}])
def test_values_that_trl_refuses_are_errors_in_its_words(trainer: dict[str, Any]) -> None:
    (name,) = trainer
    with pytest.raises(ConfigError, match=trainer.get("optim", name)):
        _configure("sft", trainer=trainer)


@dataclass
class WarmerConfig(SFTConfig):
    """Arguments of a method of one's own beside TRL's settings."""

    temperature: float = 1.0


def test_a_table_and_a_method_of_one_s_own() -> None:
    method = replace(method_named("sft"), name="warm", trl_config=f"{__name__}:WarmerConfig")
    table = (
        *SETTINGS,
        TrainerSetting("temperature", DEFAULT, lambda options: 2.0 + options.seed),
        TrainerSetting("weight_decay", REFUSED, hint="it is cold", methods=("warm",)),
    )
    options = _options("sft", seed=1)
    assert configure(options, method, Path("x"), table).temperature == 3.0
    options.trainer = {"temperature": 5.0, "weight_decay": 0.1, "temprature": 1}
    found = trainer_problems(options, method, table=table)
    assert [p.mend for p in found] == ["it is cold", "did you mean trainer.temperature?"]


def test_the_table_imports_no_framework() -> None:
    """So that a configuration can be composed, and a command described, in no time."""
    modules = "settings", "settings_table", "preference_options"
    names = ", ".join(f"gptoss_ft.train.{module}" for module in modules)
    heavy = "{'trl', 'torch', 'transformers'}"
    code = f"import sys, {names}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_several_gpus_in_one_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers would split batches by DataParallel, and the batch's documents with them."""
    monkeypatch.setattr(SFTConfig, "n_gpu", 2)
    with pytest.raises(ConfigError, match="2 GPUs are visible") as refused:
        _configure("sft")
    assert refused.value.problems[0].where == "CUDA_VISIBLE_DEVICES"
