"""The settings of TRL and transformers that a run decides, presets, refuses or checks.

A setting without a row goes to TRL as the user wrote it, and TRL or transformers act on it. A test
goes over every field of TRL's configurations and knows which those are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gptoss_ft.train.preference_options import estimates_divergence
from gptoss_ft.validation import Range

if TYPE_CHECKING:
    from gptoss_ft.train.options import TrainOptions

DECIDED: Literal["decided"] = "decided"
DEFAULT: Literal["default"] = "default"
REFUSED: Literal["refused"] = "refused"
PASSED: Literal["passed"] = "passed"


def _always(options: TrainOptions) -> bool:
    return True


@dataclass(frozen=True)
class TrainerSetting:
    """One setting, as it concerns some methods."""

    name: str
    """Field of TRL's or transformers' configuration; `trainer.NAME` for the user."""

    kind: Literal["decided", "default", "refused", "passed"]
    """`decided`: the run's value counts, and the user's is an error; `default`: ours, unless the
    user says otherwise; `refused`: our loss or loop would ignore it; `passed`: the user's, of which
    only the range is checked."""

    value: Any = None
    """The value if decided or a default: a constant, or `f(options: TrainOptions)`."""

    hint: str = ""
    """The user's alternative to setting it, or the reason why nobody sets it."""

    methods: tuple[str, ...] = ()
    """Names of the methods it concerns; all of them when empty."""

    range: Range | None = None
    """Numbers that it takes, where that is checked here."""

    when: Callable[[TrainOptions], bool] = _always
    """`f(options: TrainOptions)`: true if the row counts in the run."""

    def value_in(self, options: TrainOptions) -> Any:
        """Returns the value that a run with these options gives it."""
        return self.value(options) if callable(self.value) else self.value


PAIRS = ("dpo", "orpo", "simpo")
PREFERENCES = (*PAIRS, "kto")


def _refused(hint: str, *names: str, methods: tuple[str, ...] = ()) -> tuple[TrainerSetting, ...]:
    """Returns the rows of settings that are refused for one reason."""
    return tuple(TrainerSetting(name, REFUSED, hint=hint, methods=methods) for name in names)


def _checked(
    allowed: Range, *names: str, methods: tuple[str, ...] = ()
) -> tuple[TrainerSetting, ...]:
    """Returns the rows of settings that are passed on if they lie within one range."""
    return tuple(TrainerSetting(name, PASSED, range=allowed, methods=methods) for name in names)


def _has_gpu(options: TrainOptions) -> bool:
    import torch

    return torch.cuda.is_available()


def _has_no_gpu(options: TrainOptions) -> bool:
    return not _has_gpu(options)


def _is_validated(options: TrainOptions) -> bool:
    return options.data.has_validation


def _save_strategy(options: TrainOptions) -> str:
    return str(options.trainer.get("save_strategy", "epoch"))


def _eval_strategy(options: TrainOptions) -> str:
    """Returns when to evaluate: with every checkpoint, or after each epoch."""
    saved_by_steps = _save_strategy(options) == "steps"
    return str(options.trainer.get("eval_strategy", "steps" if saved_by_steps else "epoch"))


def _evaluates_checkpoints(options: TrainOptions) -> bool:
    """Checks whether every checkpoint is evaluated, without which the best cannot be loaded."""
    return _save_strategy(options) == _eval_strategy(options)


def _shares_steps(options: TrainOptions) -> bool:
    """Checks whether evaluations have no interval of their own, but that of the checkpoints."""
    by_steps = _save_strategy(options) == _eval_strategy(options) == "steps"
    return _is_validated(options) and by_steps and "save_steps" in options.trainer


def _pads_batches(options: TrainOptions) -> bool:
    single = options.trainer.get("per_device_train_batch_size") == 1
    return not options.data.packing and not single


def _estimates_divergence(options: TrainOptions) -> bool:
    return estimates_divergence(options.trainer)


def _has_another_loss(options: TrainOptions) -> bool:
    # TRL's older name of its default is the same loss.
    return options.trainer.get("loss_type") not in ("nll", "chunked_nll")


_RENDERED = "leave it out: rows are rendered before TRL sees them"
_OWN_ATTENTION = "set data.packing; TRL's own would mix documents with this attention"
_NO_PADDING = "leave it out: batches are laid end to end, or padded to their longest row"
_WEIGHTS = "set data.render.turns and data.render.weights"
_HARMONY = "leave it out: rows are rendered in Harmony, whose tokens and template are fixed"
_FIXED_REFERENCE = "leave it out: the reference stays what it is when the run begins"
_NO_UPLOAD = "leave it out: nothing is uploaded"
_NO_PREDICTIONS = "leave it out: evaluations keep losses and counts, no predictions"
_OWN_LOSS = "the method is the loss; use preference.method=dpo for TRL's loss types"
_ABOVE_ZERO = Range(above=0)
_TEACHES_NOTHING = "write a number above 0, such as 0.1: at 0 the pairs would teach nothing"
_SMOOTHING = "write a number of at least 0 and below 0.5, such as 0.1"

_OF_THE_RUN = (
    # `configure` is told the folder.
    TrainerSetting("output_dir", DECIDED, hint="name=NAME decides the folder"),
    TrainerSetting("run_name", DECIDED, lambda options: options.name, "set name=NAME"),
    TrainerSetting(
        "report_to",
        DECIDED,
        lambda options: "wandb" if options.tracker.kind == "wandb" else "none",
        "choose tracker=none, tracker=wandb or tracker=tensorboard",
    ),
    TrainerSetting("seed", DECIDED, lambda options: options.seed, "set seed"),
    TrainerSetting("data_seed", DECIDED, lambda options: options.seed, "set seed"),
    TrainerSetting("max_length", DECIDED, None, "set data.max_length"),
    TrainerSetting("packing", DECIDED, False, _OWN_ATTENTION),
    TrainerSetting("padding_free", DECIDED, False, _OWN_ATTENTION),
    TrainerSetting("dataset_kwargs", DECIDED, {"skip_prepare_dataset": True}, _RENDERED),
    TrainerSetting("remove_unused_columns", DECIDED, True, _RENDERED),
    TrainerSetting(
        "bf16",
        DECIDED,
        False,
        "leave it out: weights are stored in bfloat16 and computed in it on a GPU, in float32 on "
        "a CPU",
    ),
    TrainerSetting("fp16", DECIDED, False, "leave it out: gpt-oss overflows in float16"),
    TrainerSetting("trust_remote_code", DECIDED, False, "leave it out: remote code is never run"),
    TrainerSetting("push_to_hub", DECIDED, False, _NO_UPLOAD),
    TrainerSetting(
        "use_liger_kernel", DECIDED, False, "leave it out: the model brings its own loss"
    ),
    TrainerSetting(
        "save_only_model", DECIDED, False, "leave it out: a checkpoint must be able to resume"
    ),
    TrainerSetting(  # the patience of early stopping
        "restore_callback_states_from_checkpoint",
        DECIDED,
        True,
        "leave it out: a resumed run always restores them",
    ),
    TrainerSetting(
        "precompute_ref_log_probs",
        DECIDED,
        False,
        "leave it out: the reference is always computed once and cached",
    ),
    TrainerSetting("sync_ref_model", DECIDED, False, _FIXED_REFERENCE),
    TrainerSetting(
        "train_sampling_strategy",
        DECIDED,
        "sequential",
        "leave it out: the rows are shuffled once; mismatched completions come from the same batch",
        methods=("kto",),
        when=_estimates_divergence,
    ),
)

_DEFAULTS = (
    TrainerSetting("gradient_checkpointing", DEFAULT, False),
    TrainerSetting("router_aux_loss_coef", DEFAULT, 0.0, range=Range(least=0)),
    TrainerSetting("logging_steps", DEFAULT, 1),
    TrainerSetting("logging_first_step", DEFAULT, True),
    # The filter would wait for the GPU after every batch.
    TrainerSetting("logging_nan_inf_filter", DEFAULT, False),
    TrainerSetting("dataloader_pin_memory", DEFAULT, _has_gpu),
    TrainerSetting("use_cpu", DEFAULT, _has_no_gpu),
    TrainerSetting("save_strategy", DEFAULT, _save_strategy, when=_is_validated),
    TrainerSetting("eval_strategy", DEFAULT, _eval_strategy, when=_is_validated),
    TrainerSetting(
        "eval_steps", DEFAULT, lambda options: options.trainer["save_steps"], when=_shares_steps
    ),
    TrainerSetting("load_best_model_at_end", DEFAULT, _evaluates_checkpoints, when=_is_validated),
    TrainerSetting("metric_for_best_model", DEFAULT, "eval_loss", when=_is_validated),
    TrainerSetting("greater_is_better", DEFAULT, False, when=_is_validated),
    TrainerSetting(
        "train_sampling_strategy",
        DEFAULT,
        "group_by_length",
        methods=("sft",),
        when=_pads_batches,
    ),
)

_IGNORED = (
    *_refused("set model.path", "model_init_kwargs"),
    *_refused("set data.workers", "dataset_num_proc"),
    *_refused("set data.format, if the rows' own is not found", "dataset_text_field"),
    *_refused("set data.on_too_long", "truncation_mode"),
    *_refused("set trainer.train_sampling_strategy", "shuffle_dataset", methods=("sft",)),
    *_refused("set data.packing", "packing_strategy", "eval_packing"),
    *_refused(_NO_PADDING, "pad_to_multiple_of", "pad_token"),
    *_refused("leave it out: the lengths of rows are known", "length_column_name"),
    *_refused(_RENDERED, "label_names"),
    *_refused(_HARMONY, "eos_token", "chat_template_path"),
    *_refused(_WEIGHTS, "completion_only_loss", "assistant_only_loss"),
    *_refused("leave it out: the losses of tokens have no smoothing", "label_smoothing_factor"),
    *_refused("leave it out: neither gpt-oss nor its adapters have dropout", "disable_dropout"),
    *_refused("leave it out: training keeps no keys and values", "use_cache"),
    *_refused(
        "leave it out: a step's loss is always a mean over all processes",
        "average_tokens_across_devices",
    ),
    *_refused(
        _NO_PREDICTIONS,
        *("prediction_loss_only", "batch_eval_metrics", "include_for_metrics"),
        "eval_do_concat_batches",
    ),
    *_refused(
        "leave it out: evaluations compute as training does", "bf16_full_eval", "fp16_full_eval"
    ),
    *_refused("leave it out: `gptoss-ft train` trains", "do_train"),
    *_refused("hold rows out with data.validation_split or data.validation.path", "do_eval"),
    *_refused("use `gptoss-ft generate`", "do_predict"),
    *_refused("set resume=true", "resume_from_checkpoint"),
    *_refused("leave it out: the progress bar follows the terminal", "disable_tqdm"),
    *_refused("leave it out: the model brings its own loss", "liger_kernel_config"),
    *_refused("leave it out: the launcher sets LOCAL_RANK", "local_rank"),
    *_refused("set tracker.project", "project"),
    *_refused(
        "choose tracker=none, tracker=wandb or tracker=tensorboard",
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    ),
    *_refused(
        _NO_UPLOAD,
        *("hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "hub_always_push"),
        "hub_revision",
    ),
    *_refused(
        "leave it out: the reference is scored in batches of data.max_length tokens",
        "precompute_ref_batch_size",
    ),
    *_refused(_FIXED_REFERENCE, "ref_model_mixup_alpha", "ref_model_sync_steps"),
    TrainerSetting(
        "loss_type",
        REFUSED,
        hint="leave it out; the loss is the weighted negative log-likelihood, TRL's nll",
        methods=("sft",),
        when=_has_another_loss,
    ),
    *_refused(
        _OWN_LOSS,
        *("loss_type", "loss_weights", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef"),
        *("use_weighting", "discopop_tau"),
        methods=("orpo", "simpo"),
    ),
    *_refused("leave it out: ORPO has none", "label_smoothing", methods=("orpo",)),
)

_RANGES = (
    *_checked(_ABOVE_ZERO, "learning_rate", "num_train_epochs", "max_grad_norm"),
    *_checked(
        Range(least=1),
        *("per_device_train_batch_size", "per_device_eval_batch_size"),
        "gradient_accumulation_steps",
    ),
    *_checked(Range(least=0), "weight_decay", "warmup_steps"),
    *_checked(Range(above=0, mend=_TEACHES_NOTHING), "beta", methods=PREFERENCES),
    *_checked(_ABOVE_ZERO, "discopop_tau", methods=("dpo",)),
    *_checked(_ABOVE_ZERO, "desirable_weight", "undesirable_weight", methods=("kto",)),
    TrainerSetting(
        "ld_alpha",
        PASSED,
        methods=("dpo",),
        range=Range(least=0, most=1),
        when=lambda options: options.trainer.get("ld_alpha") is not None,
    ),
    *_checked(
        Range(least=0, below=0.5, mend=_SMOOTHING), "label_smoothing", methods=("dpo", "simpo")
    ),
)

SETTINGS: tuple[TrainerSetting, ...] = (*_OF_THE_RUN, *_DEFAULTS, *_IGNORED, *_RANGES)
"""All trainer settings; at most one row of a name counts in a run of one method."""
