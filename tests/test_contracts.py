"""The hooks of transformers, PEFT and TRL that are not public, or whose shape we rely on.

A failure here after raising a version cap says what moved and which module of ours leans on it.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from peft import LoraConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import EarlyStoppingCallback, GptOssConfig, Trainer, TrainerState
from transformers.masking_utils import causal_mask_function, eager_mask
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.quantizers.base import HfQuantizer
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.experts.backends.grouped import grouped_mm
from gptoss_ft.train.preference_options import DPO_LOSSES, KTO_LOSSES
from gptoss_ft.train.trainers.sft import WeightedSFTTrainer

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

# owner, method, parameters that we pass or override by name, the module of ours
METHODS = [
    (HfQuantizer, "_process_model_before_weight_loading", ["model"], "model/load.py"),
    (HfQuantizer, "get_weight_conversions", [], "model/load.py"),
    (HfQuantizer, "is_serializable", [], "model/load.py"),
    (LoraConfig, "_register_custom_module", ["mapping"], "adapters/experts.py"),
    (ParamWrapper, "_get_in_out_features", ["module"], "adapters/experts.py"),
    (ParamWrapper, "_check_forward_args", ["x"], "adapters/experts.py"),
    (ParamWrapper, "get_param", [], "adapters/experts.py"),
    (ParamWrapper, "forward", ["x"], "adapters/experts.py"),
    (ParamWrapper, "merge", ["safe_merge", "adapter_names"], "adapters/experts.py"),
    (BaseTunerLayer, "set_adapter", ["adapter_names"], "adapters/trained.py"),
    (BaseTunerLayer, "enable_adapters", ["enabled"], "adapters/trained.py"),
    (
        PeftModelForCausalLM,
        "save_pretrained",
        ["save_directory"],
        "adapters/model.py",
    ),
    (PeftModelForCausalLM, "load_adapter", ["model_id", "adapter_name"], "adapters/model.py"),
    (Trainer, "_set_signature_columns_if_needed", [], "train/trainers/sft.py"),
    (Trainer, "_get_num_items_in_batch", ["batch_samples", "device"], "train/trainers/sft.py"),
    (Trainer, "evaluation_loop", ["metric_key_prefix"], "train/trainers/base.py"),
    (Trainer, "_save_checkpoint", ["model", "trial"], "train/checkpoints.py"),
    (Trainer, "_get_output_dir", ["trial"], "train/checkpoints.py"),
    (Trainer, "_save", ["output_dir", "state_dict"], "train/checkpoints.py"),
    (Trainer, "_run_epoch", [], "train/checkpoints.py"),
    (Trainer, "_save_rng_state", ["output_dir"], "train/trainers/base.py"),
    (Trainer, "_load_rng_state", ["checkpoint"], "train/trainers/base.py"),
    (SFTTrainer, "create_model_card", [], "train/checkpoints.py"),
    (
        SFTTrainer,
        "compute_loss",
        ["model", "inputs", "return_outputs", "num_items_in_batch"],
        "train/trainers/sft.py",
    ),
    (SFTTrainer, "log", ["logs", "start_time"], "train/trainers/base.py"),
    *(
        (trainer, name, parameters, f"train/{file}.py")
        for trainer, own in ((DPOTrainer, "dpo"), (KTOTrainer, "kto"))
        for name, parameters, file in (
            ("_compute_loss", ["model", "inputs", "return_outputs"], own),
            ("_prepare_dataset", ["dataset"], own),
            ("_precompute_ref_logps", ["dataset"], own),
            (
                "compute_loss",
                ["model", "inputs", "return_outputs", "num_items_in_batch"],
                "example_means",
            ),
            ("log", ["logs", "start_time"], "example_means"),
        )
    ),
    (KTOTrainer, "_compute_kl_logps", ["model", "batch"], "train/trainers/kto.py"),
    (PeftModel, "delete_adapter", ["adapter_name"], "trainers/example_means.py"),
    (
        modeling_gpt_oss.GptOssExperts,
        "forward",
        ["hidden_states", "router_indices", "routing_weights"],
        "model/experts/module.py",
    ),
    (modeling_gpt_oss.GptOssTopKRouter, "forward", ["hidden_states"], "model/storage.py"),
]


@pytest.mark.parametrize(("owner", "name", "parameters", "ours"), METHODS)
def test_a_hook_is_still_there(owner: type, name: str, parameters: list[str], ours: str) -> None:
    assert hasattr(owner, name), f"{owner.__name__}.{name} is gone; gptoss_ft/{ours} needs it"
    known = inspect.signature(getattr(owner, name)).parameters
    missing = [parameter for parameter in parameters if parameter not in known]
    assert not missing, f"{owner.__name__}.{name} lost {missing}; gptoss_ft/{ours} passes them"


def test_caps_are_the_versions_that_are_tested() -> None:
    """The three libraries whose insides we lean on are capped below the next minor version."""
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    for requirement in map(Requirement, dependencies):
        assert any(part.operator == ">=" for part in requirement.specifier), requirement
        installed = importlib.metadata.version(requirement.name)
        assert installed in requirement.specifier, requirement
        if requirement.name in ("transformers", "peft", "trl"):
            assert any(part.operator == "<" for part in requirement.specifier), requirement


def test_the_router_and_experts_exchange_what_we_think() -> None:
    """Router: logits, weights, indices. Experts: states, indices, weights by position."""
    config = GptOssConfig(
        hidden_size=8, intermediate_size=8, num_local_experts=4, num_experts_per_tok=2
    )
    router = modeling_gpt_oss.GptOssTopKRouter(config)
    torch.nn.init.normal_(router.weight)
    torch.nn.init.zeros_(router.bias)
    logits, weights, indices = router(torch.randn(5, 8))
    assert logits.shape == (5, 4)
    assert weights.shape == indices.shape == (5, 2)
    assert torch.equal(weights.softmax(-1).argmax(-1), weights.argmax(-1))
    assert weights.sum(-1).allclose(torch.ones(5))

    mlp = modeling_gpt_oss.GptOssMLP(config)
    calls: list[Any] = []
    mlp.experts.forward = lambda *args: calls.append(args) or args[0]
    for parameter in mlp.router.parameters():
        torch.nn.init.normal_(parameter)
    mlp(torch.randn(1, 5, 8))
    ((states, indices, weights),) = calls
    assert states.shape == (5, 8)
    assert indices.dtype == torch.int64 and weights.dtype == torch.float32


def test_peft_reads_these_attributes_of_its_layers() -> None:
    assert BaseTunerLayer.adapter_layer_names == ()
    assert {"_disable_adapters", "_active_adapter", "merged_adapters"} <= {
        name for name in dir(BaseTunerLayer)
    }
    assert '"state_dict"' in inspect.getsource(PeftModel.save_pretrained), (
        "PEFT no longer takes a state_dict to save; gptoss_ft/adapters/model.py passes one"
    )
    source = inspect.getsource(ParamWrapper)
    for name in ("num_experts", "_param_ndim", "parameter_name"):
        assert name in source, f"ParamWrapper has no {name}; gptoss_ft/adapters/experts.py needs it"


def test_the_trainer_reads_the_flags_we_set() -> None:
    """Without `loss_is_scaled_for_ga`, the loss would be divided by the accumulation again."""
    assert "loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step)
    assert WeightedSFTTrainer.loss_is_scaled_for_ga is True
    source = inspect.getsource(SFTTrainer)
    for name in ("aux_loss_enabled", "router_aux_loss_coef"):
        assert name in source, f"SFTTrainer has no {name}; trainers/sft.py needs it"
    assert "current_gradient_accumulation_steps" in inspect.getsource(Trainer)
    assert "skip_prepare_dataset" in source


@pytest.mark.parametrize("trainer", [DPOTrainer, KTOTrainer])
def test_preference_trainers_call_the_model_as_we_answer(trainer: type) -> None:
    """With a fused head, whose output they read by these names, and rows' own reference."""
    source = inspect.getsource(trainer._compute_loss)
    for name in ("fused_lm_head=True", "outputs.log_probs", "outputs.entropy", "mean_logits"):
        assert name in source, (
            f"{trainer.__name__} no longer reads {name}; trainers/dpo.py answers it"
        )
    for name in ("self.precompute_ref_logps", "self._metrics[mode]", "self._total_train_tokens"):
        assert name in source, (
            f"{trainer.__name__} has no {name}; trainers/example_means.py sets or reads it"
        )
    added = 'model.add_adapter("ref"'
    assert added in inspect.getsource(trainer.__init__), (
        f"{trainer.__name__} copies no adapter now; trainers/example_means.py deletes the copy"
    )


def test_the_losses_that_options_name_are_those_of_trl() -> None:
    """A loss that TRL adds is unknown here until it is looked at: see `preference_options.py`."""
    for trainer, losses in ((DPOTrainer, DPO_LOSSES), (KTOTrainer, KTO_LOSSES)):
        source = inspect.getsource(trainer._compute_loss)
        assert set(re.findall(r'loss_type == "(\w+)"', source)) == set(losses), trainer


def test_the_weighted_normaliser_is_asked_for() -> None:
    """The trainer calls our `_get_num_items_in_batch` with the batches of one optimizer step."""
    trainer = SimpleNamespace(args=SimpleNamespace(world_size=1))
    batches = [{"loss_weights": torch.tensor([[9.0, 0.5, 2.0]])} for _ in range(2)]
    weight = WeightedSFTTrainer._get_num_items_in_batch(trainer, batches, torch.device("cpu"))
    assert weight.item() == 5.0, "the first position predicts nothing"
    assert "_get_num_items_in_batch" in inspect.getsource(transformers.Trainer.get_batch_samples)


def test_generation_asks_for_the_last_logits_only() -> None:
    """Else a prompt of 400 tokens costs 300 MB of logits a row."""
    assert "logits_to_keep" in inspect.signature(WeightedGptOss.forward).parameters
    source = inspect.getsource(transformers.GenerationMixin._supports_logits_to_keep)
    assert '"logits_to_keep"' in source and "self.forward" in source


def test_a_checkpoint_is_written_below_the_output_folder_and_ends_with_its_state() -> None:
    """Our staging stands in for that folder while transformers writes."""
    source = inspect.getsource(Trainer._save_checkpoint)
    order = ("self._get_output_dir(", "self.save_model(", "_save_rng_state", "save_to_json")
    places = [source.find(part) for part in order]
    assert -1 not in places and places == sorted(places), dict(zip(order, places, strict=True))
    assert "super()._save_checkpoint(model, trial)" in inspect.getsource(
        SFTTrainer._save_checkpoint
    ), "TRL writes checkpoints in its own way; see gptoss_ft/train/checkpoints.py"
    names = ("best_global_step", "best_model_checkpoint", "global_step", "max_steps")
    missing = [name for name in names if not hasattr(TrainerState(), name)]
    assert not missing, f"TrainerState lost {missing}; gptoss_ft/train/checkpoints.py needs them"


def test_states_are_loaded_as_weights_only() -> None:
    """A checkpoint may come from someone else: nothing in it is run."""
    for method in ("_load_rng_state", "_load_optimizer_and_scheduler", "_load_from_checkpoint"):
        source = inspect.getsource(getattr(Trainer, method))
        loads = source.count("torch.load(")
        assert loads and source.count("weights_only=True") == loads, method


def test_patience_is_restored_from_a_checkpoint() -> None:
    """Else a resumed run would stop later than an undisturbed one."""
    assert "restore_callback_states_from_checkpoint" in inspect.getsource(
        Trainer._load_callback_state
    )
    state = EarlyStoppingCallback(early_stopping_patience=3).state()
    assert state["attributes"] == {"early_stopping_patience_counter": 0}
    assert state["args"]["early_stopping_patience"] == 3


def test_eager_attention_takes_the_sinks_from_the_module_and_an_additive_mask() -> None:
    """What `gptoss_sink` falls back to."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 5, 4), torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5, 4)
    module: Any = SimpleNamespace(sinks=torch.randn(2), num_key_value_groups=2, training=False)
    mask = eager_mask(1, 5, 5, mask_function=causal_mask_function, dtype=torch.float32)
    assert mask.shape == (1, 1, 5, 5) and mask.dtype == torch.float32
    assert torch.equal(mask[0, 0] == 0, torch.ones(5, 5).tril().bool())
    output, _ = modeling_gpt_oss.eager_attention_forward(module, query, key, value, mask, 0.5, 0.0)
    scores = torch.einsum("bhid,bgjd->bhij", query, key) * 0.5 + mask
    sinks = module.sinks[None, :, None, None].expand(1, 2, 5, 1)
    weights = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    expected = torch.einsum("bhij,bgjd->bihd", weights, value)
    torch.testing.assert_close(output, expected)


# operator, its arguments in order, how many results; the module of ours
FLASH = [
    (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        "query key value dropout_p is_causal attn_mask scale",
        2,
        "model/attention/cpu.py",
    ),
    (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        "grad_out query key value out logsumexp dropout_p is_causal attn_mask scale",
        3,
        "model/attention/cpu.py",
    ),
    (
        torch.ops.aten._flash_attention_forward.default,
        "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask "
        "scale window_size_left window_size_right",
        5,
        "model/attention/cuda.py",
    ),
    (
        torch.ops.aten._flash_attention_backward.default,
        "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p "
        "is_causal rng_state unused scale window_size_left window_size_right",
        3,
        "model/attention/cuda.py",
    ),
]


@pytest.mark.parametrize(("operator", "arguments", "results", "ours"), FLASH)
def test_torchs_flash_operators_are_called_as_they_are(
    operator: Any, arguments: str, results: int, ours: str
) -> None:
    """Operators of aten are no public API of torch; ours pass most arguments by position."""
    schema = operator._schema
    found = [argument.name for argument in schema.arguments]
    wanted = arguments.split()
    assert found[: len(wanted)] == wanted, f"{operator} takes {found}; gptoss_ft/{ours} passes them"
    assert all(argument.has_default_value() for argument in schema.arguments[len(wanted) :]), ours
    assert len(schema.returns) == results, ours


def test_the_grouped_gemm_takes_ends_of_groups() -> None:
    """`offs` by name: groups of rows, or of columns where both are matrices."""
    rows, matrices = torch.randn(6, 16), torch.randn(2, 16, 8)
    ends = torch.tensor([2, 6], dtype=torch.int32)
    found = grouped_mm(rows, matrices, ends)
    expected = torch.cat([rows[:2] @ matrices[0], rows[2:] @ matrices[1]])
    torch.testing.assert_close(found, expected)
    left = torch.randn(6, 8)
    outer = grouped_mm(left.T, rows, ends)
    torch.testing.assert_close(outer, torch.stack([left[:2].T @ rows[:2], left[2:].T @ rows[2:]]))
