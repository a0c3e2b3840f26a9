"""The path of a GPU on meta tensors: shapes, dtypes, and when the host waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_copies import HostCopies
from torch import nn
from transformers import GptOssConfig

from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.data.collate_pairs import PairCollator
from gptoss_ft.documents import documents_from_lengths
from gptoss_ft.model.attention import sinks as attention
from gptoss_ft.model.attention.sinks import SINK_ATTENTION, register_sink_attention
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.experts.backends.base import ExpertBackend
from gptoss_ft.model.experts.backends.grouped import GroupedBackend, LoopedBackend
from gptoss_ft.model.experts.low_rank import low_rank_update
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.model.load import replace_layers
from gptoss_ft.model.storage import StoredEmbedding
from gptoss_ft.mxfp4.codec import unpack
from gptoss_ft.train.trainers.preference_batch import completion_scores

LAYERS, EXPERTS, TOP = 4, 8, 2
BATCH, LENGTH = 2, 300
BACKENDS: list[type[ExpertBackend]] = [GroupedBackend, LoopedBackend]
SHAPE = (BATCH, LENGTH)
DOCUMENTS = documents_from_lengths([[170, 120], [300]], LENGTH)


def _config() -> GptOssConfig:
    config = GptOssConfig(
        num_hidden_layers=LAYERS,
        hidden_size=128,
        intermediate_size=96,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=1024,
        pad_token_id=None,
        dtype=torch.bfloat16,
    )
    config._attn_implementation = SINK_ATTENTION
    return config


def _counts(pairs: int) -> torch.Tensor:
    """How a router might spread pairs: unevenly, one expert with none."""
    counts = torch.full((EXPERTS,), pairs // EXPERTS)
    counts[0] += counts[1] + pairs % EXPERTS
    counts[1] = 0
    return counts


@pytest.fixture(autouse=True)
def _tables_of_the_codec_are_there() -> None:
    """They are copied to a device once in a process."""
    with torch.device("meta"):
        blocks = torch.empty(1, 1, 16, dtype=torch.uint8)
        unpack(blocks, torch.empty(1, 1, dtype=torch.uint8), torch.bfloat16)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> AdaptedModel:
    """A packed gpt-oss with every kind of adapter, on meta, as `load_model` makes it on a GPU."""
    monkeypatch.setattr(attention, "_has_kernel", lambda query: True)
    register_sink_attention()
    config = _config()
    with torch.device("meta"):
        base = WeightedGptOss(config)
        replace_layers(base, config)
        base.to(torch.bfloat16).requires_grad_(False)
        for module in base.modules():
            if isinstance(module, StoredEmbedding):
                module.compute_dtype = torch.bfloat16
        options = AdapterOptions(["attention", "experts", "lossless"], r=8, expert_r=4)
        return add_adapter(base, options, AdapterInfo((), "", ""))


def _experts(model: nn.Module) -> list[PackedExperts]:
    return [module for module in model.modules() if isinstance(module, PackedExperts)]


def _batch() -> dict[str, Any]:
    """What the trainer calls the model with."""
    with torch.device("meta"):
        ids = torch.empty(SHAPE, dtype=torch.int64)
        return {
            "input_ids": ids,
            "labels": ids,
            "position_ids": ids,
            "attention_mask": ids,
            "documents": DOCUMENTS,
            "loss_weights": torch.empty(SHAPE),
            "use_cache": False,
        }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_copies_once_a_layer_to_the_host(
    model: AdaptedModel, backend: type[ExpertBackend], checkpointing: bool
) -> None:
    """Forward and backward of the whole model; recomputing a layer copies its counts again."""
    for experts in _experts(model):
        experts.backend = lambda device: backend()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    pairs = BATCH * LENGTH * TOP
    answers = {(EXPERTS,): _counts(pairs)}
    with HostCopies(answers, scored=200) as host:
        output = model.train()(**_batch())
        assert host.copies == {(EXPERTS,): LAYERS}
        output.loss.backward()
    assert host.copies == {(EXPERTS,): LAYERS * (1 + checkpointing)}
    assert host.asked <= 3, "of the loss, once a step"
    assert output.loss.dtype == torch.float32
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) > 10 * LAYERS
    for name, parameter in trained.items():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.shape == parameter.shape, name


def test_scoring_pairs_copies_nothing_but_the_counts(model: AdaptedModel) -> None:
    """What sees what comes from the host, and no selection asks for its size."""
    ids = list(range(1, 90))
    row = {
        f"{side}_{part}": values
        for side in ("chosen", "rejected")
        for part, values in (("ids", ids), ("weights", [0.0, *[1.0] * 88]), ("channels", [3] * 89))
    }
    batch = PairCollator()([{"prompt_ids": ids, **row}] * 2)
    length = batch["documents"].length
    on_device = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    for experts in _experts(model):
        experts.backend = lambda device: GroupedBackend()
    with HostCopies({(EXPERTS,): _counts(length * TOP)}) as host:
        output = completion_scores(model.train(), on_device)
        output.log_probs.sum().backward()
    assert host.copies == {(EXPERTS,): LAYERS}
    assert output.log_probs.shape == (4, 89) and output.log_probs.dtype == torch.float32


def test_states_between_layers_are_bfloat16(model: AdaptedModel) -> None:
    """bfloat16 computes, also behind float32 adapters, norms, routers and sinks."""
    seen: dict[str, set[torch.dtype]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, set()).add(first.dtype)

        return hook

    watched = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm", "q_proj", "norm")
    for experts in _experts(model):
        experts.backend = lambda device: GroupedBackend()
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in watched:
            module.register_forward_hook(note(name.rpartition(".")[2]))
    answers = {(EXPERTS,): _counts(BATCH * LENGTH * TOP)}
    with HostCopies(answers, scored=200):
        model(**_batch())
    assert seen == {name: {torch.bfloat16} for name in watched}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
@pytest.mark.parametrize("keep", [True, False])
def test_the_expert_block_alone(backend: type[ExpertBackend], chunk_bytes: int, keep: bool) -> None:
    """One expert at a time or all at once; nothing but the counts is read, and they once."""
    with torch.device("meta"):
        block = PackedExperts(_config()).to(torch.bfloat16)
        x = torch.empty(40, 128, dtype=torch.bfloat16, requires_grad=True)
        weights = torch.empty(40, TOP, dtype=torch.bfloat16, requires_grad=True)
        indices = torch.empty(40, TOP, dtype=torch.int64)
        factors = [
            torch.empty(shape, requires_grad=True)
            for shape in ((EXPERTS, 3, 128), (EXPERTS, 192, 3), (EXPERTS, 3, 96), (EXPERTS, 128, 3))
        ]
    block.backend, block.save_pre_activation = (lambda device: backend(chunk_bytes)), keep
    updates = [(low_rank_update((A, B, 0.5)),) for A, B in (factors[:2], factors[2:])]
    with HostCopies({(EXPERTS,): _counts(40 * TOP)}) as host:
        output = block(x, indices, weights, *updates)
        leaves = [x, weights, *factors]
        found = torch.autograd.grad(output, leaves, torch.empty_like(output))
    assert host.copies == {(EXPERTS,): 1}
    assert (output.shape, output.dtype) == (x.shape, torch.bfloat16)
    for leaf, gradient in zip(leaves, found, strict=True):
        assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.tolist(),
        lambda x: x[0].item(),
        lambda x: x.cpu(),
        lambda x: bool(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 1)[x > 0],
        lambda x: x.repeat_interleave(x),
        lambda x: x.copy_(torch.zeros(4)),
        lambda x: torch.zeros(4).copy_(x),
        lambda x: torch.ones(4).to(x.device),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: x.new_tensor([1, 2]),
        lambda x: torch.equal(x, x),
        lambda x: x.__setitem__(x > 0, 1),
    ],
)
def test_whatever_waits_for_the_device_is_refused(wait: Callable[[torch.Tensor], Any]) -> None:
    """What the tests above rely on."""
    device = torch.empty(4, dtype=torch.int64, device="meta")
    with pytest.raises(AssertionError), HostCopies({}):
        wait(device)
    with HostCopies({}):
        torch.ones(4).to("meta", non_blocking=True)
