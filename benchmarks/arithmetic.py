"""The arithmetic of a training step on its own: its matrix products and nothing around them.

Float32 products of dense matrices that are there already, by `torch.mm(out=)` or by the faster of
torch's two libraries (`put_product` of `gptoss_ft.model.matmul`, as in the step), with exactly the
rows, inner sizes and columns that a LoRA step on packed experts has to multiply:

- frozen matrices twice, by their input forward and by the gradient of their output backward;
- low-rank factors six times: two forward, two for the gradient of the input, two for their own;
- the head twice, on the scored rows only.

Attention's products of queries, keys and values are not among them, nor is unpacking.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptoss_ft.model.cpu.matmul import put_product

Product = tuple[int, int, int, bool]  # rows, inner, columns, right factor transposed
Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]  # out, left, right
HEAD_SLICES = 16


@dataclass(frozen=True)
class StepShape:
    """What decides the products of a step.

    Attributes:
        config: config.json of the model.
        counts: pairs of every expert, for each layer.
        tokens: of the batch.
        scored: positions with a loss.
        rank: of every adapter.
    """

    config: Mapping[str, Any]
    counts: Sequence[Sequence[int]]
    tokens: int
    scored: int
    rank: int


class Matrices:
    """Random operands and results, made once for each size so that only products are timed."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, int], torch.Tensor] = {}

    def operands(self, product: Product) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Left and right factor and the result of a product."""
        rows, inner, columns, transposed = product
        if transposed:
            right = self._get("weight", columns, inner).T
        else:
            right = self._get("weight", inner, columns)
        return self._get("left", rows, inner), right, self._get("out", rows, columns)

    def _get(self, role: str, rows: int, columns: int) -> torch.Tensor:
        """`[rows, columns]`, the beginning of the longest of its role and width so far."""
        made = self._made.get((role, columns))
        if made is None or len(made) < rows:
            made = self._made[role, columns] = torch.randn(rows, columns)
        return made[:rows]


def frozen(rows: int, inner: int, columns: int) -> list[Product]:
    """A frozen matrix `[columns, inner]`: the output, and the gradient of the input."""
    return [(rows, inner, columns, True), (rows, columns, inner, False)]


def low_rank(rows: int, inner: int, columns: int, rank: int) -> list[Product]:
    """The factors beside a matrix: output, gradient of the input, and their own gradients.

    Narrow results are formed transposed, which BLAS does several times faster.
    """
    return [
        (rank, inner, rows, True),
        (rows, rank, columns, True),
        (rank, columns, rows, True),
        (rows, rank, inner, False),
        (rank, rows, inner, False),
        (rank, rows, columns, False),
    ]


def attention_matrices(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Input and output of q, k, v and o."""
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv_heads = config["num_key_value_heads"] * config["head_dim"]
    return [(hidden, heads), (hidden, kv_heads), (hidden, kv_heads), (heads, hidden)]


def expert_matrices(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Input and output of gate_up and down."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    return [(hidden, 2 * intermediate), (intermediate, hidden)]


def layer_products(shape: StepShape, layer: int) -> dict[str, list[Product]]:
    """The products of one layer by kind."""
    attention = [(shape.tokens, *size) for size in attention_matrices(shape.config)]
    hit = [count for count in shape.counts[layer] if count]
    experts = [(count, *size) for count in hit for size in expert_matrices(shape.config)]
    return {
        "attention": [product for size in attention for product in frozen(*size)],
        "experts": [product for size in experts for product in frozen(*size)],
        "low_rank": [p for size in (*attention, *experts) for p in low_rank(*size, shape.rank)],
    }


def score_products(shape: StepShape) -> list[Product]:
    """Attention's seven products of seen pairs for every head of every layer: two, then five.

    Every query meets as many keys as it does on average. `step_seconds` leaves these out.
    """
    config, found = shape.config, []
    for kind in config["layer_types"]:
        window = config["sliding_window"] if kind == "sliding_attention" else shape.tokens
        reach = min(window, shape.tokens)
        keys = max(1, round(reach - reach * (reach - 1) / 2 / shape.tokens))
        scores = (shape.tokens, config["head_dim"], keys, True)
        mixed = (shape.tokens, keys, config["head_dim"], False)
        found += ([scores] * 3 + [mixed] * 4) * config["num_attention_heads"]
    return found


def head_products(shape: StepShape) -> list[Product]:
    """The head's products, in slices of the vocabulary: nobody holds all logits."""
    config = shape.config
    columns = config["vocab_size"] // HEAD_SLICES
    return frozen(shape.scored, config["hidden_size"], columns) * HEAD_SLICES


def by_torch_mm(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`out = left @ right` by torch's usual library."""
    torch.mm(left, right, out=out)


def seconds_of(
    products: Sequence[Product], matrices: Matrices, multiply: Multiply = put_product
) -> float:
    """CPU time of the products, one after the other."""
    operands = [matrices.operands(product) for product in sorted(products, reverse=True)]
    multiply(operands[0][2], *operands[0][:2])  # wakes the library
    started = time.process_time()
    for left, right, out in map(matrices.operands, products):
        multiply(out, left, right)
    return time.process_time() - started


def step_seconds(
    shape: StepShape, matrices: Matrices, multiply: Multiply = put_product
) -> dict[str, float]:
    """CPU time of all products of a step by kind, run once each."""
    found = {"head": seconds_of(head_products(shape), matrices, multiply)}
    for layer in range(len(shape.counts)):
        for kind, products in layer_products(shape, layer).items():
            spent = seconds_of(products, matrices, multiply)
            found[kind] = found.get(kind, 0.0) + spent
    return found


def operations(shape: StepShape) -> float:
    """Floating point operations of all products of a step."""
    found = head_products(shape)
    for layer in range(len(shape.counts)):
        found += [p for products in layer_products(shape, layer).values() for p in products]
    return sum(2.0 * rows * inner * columns for rows, inner, columns, _ in found)
