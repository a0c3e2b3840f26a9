"""Every benchmark that `make bench` runs, and what its figures are held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A figure of a result and its bound.

    Attributes:
        key: path into the result, parts joined by slashes.
        relation: `>=` or `<=`.
        bound: the number it is held against.
        meaning: what the figure is, for the table.
    """

    key: str
    relation: str
    bound: float
    meaning: str

    def met(self, value: float) -> bool:
        return value >= self.bound if self.relation == ">=" else value <= self.bound


@dataclass(frozen=True)
class Benchmark:
    """One command.

    Attributes:
        name: of its stored result.
        arguments: script in this folder, and its arguments.
        title: of its section.
        targets: the figures shown first, in this order.
    """

    name: str
    arguments: tuple[str, ...]
    title: str
    targets: tuple[Target, ...] = ()


FULL_SIZE = (
    Target("over_gemm", "<=", 1.35, "CPU time over that of its own matrix products by torch.mm"),
    Target("over_fastest_gemm", "<=", 1.35, "the same by oneDNN, which the step itself uses"),
    Target("anon_gib", "<=", 4, "memory that must stay, GiB; everything else is evictable"),
)

BENCHMARKS = (
    Benchmark(
        "render",
        ("render.py",),
        "Rendering 2,000 conversations",
        (
            Target("speedup_template", ">=", 5, "faster than the HF template with mask"),
            Target("speedup_trl", ">=", 8, "faster than TRL's preparation"),
        ),
    ),
    Benchmark(
        "experts",
        ("experts.py",),
        "Experts, forward and backward",
        (
            Target("over_dense_frozen", "<=", 1.25, "time over a dense frozen MoE without LoRA"),
            Target("speedup_peft", ">=", 2, "faster than PEFT without checkpointing"),
            Target("max_rel_grad_error", "<=", 1e-4, "largest relative error of a gradient"),
        ),
    ),
    Benchmark(
        "attention",
        ("attention.py",),
        "Attention with sinks at 2,048 tokens",
        (
            Target("speedup_eager", ">=", 3, "faster than eager, a full layer"),
            Target("length_exponent", "<=", 1.15, "exponent of a sliding layer's cost, 2k to 16k"),
        ),
    ),
    Benchmark("loss", ("loss.py",), "Loss"),
    Benchmark(
        "train_step",
        ("train_step.py",),
        "Training step against TRL and PEFT",
        (
            Target("speedup_default", ">=", 3.5, "faster than TRL's defaults (checkpointing)"),
            Target("speedup_like_for_like", ">=", 2.3, "faster, both without checkpointing"),
            Target("speedup_torch_path", ">=", 2.8, "faster than the defaults without our kernel"),
            Target("speedup_same_library", ">=", 3.5, "faster than the defaults without oneDNN"),
            Target("speedup_all_trained", ">=", 2.3, "faster with every token trained"),
            Target("memory_ratio", "<=", 0.4, "peak memory over that of TRL's defaults"),
            Target("max_rel_grad_error", "<=", 1e-4, "largest relative error of a gradient"),
        ),
    ),
    Benchmark(
        "dpo_step",
        ("dpo_step.py",),
        "DPO step against TRL and PEFT",
        (
            Target("speedup", ">=", 4, "faster than TRL's defaults, reference precomputed"),
            Target("memory_ratio", "<=", 0.4, "peak memory over that of TRL's defaults"),
            Target("max_rel_grad_error", "<=", 1e-4, "largest relative error of a gradient"),
        ),
    ),
    Benchmark(
        "epoch",
        ("epoch.py",),
        "Epoch of rows of natural lengths",
        (Target("speedup_per_trained_token", ">=", 5, "fewer CPU seconds per trained token"),),
    ),
    Benchmark(
        "merge",
        ("merge.py",),
        "Merging",
        (
            Target("copy_over_io", "<=", 1.2, "experts copied: time over reading and writing"),
            Target("keep_over_io", "<=", 2.0, "experts re-rounded: the same"),
            Target("keep_stats_over_io", "<=", 2.6, "re-rounded with the report's statistics"),
            Target("speedup_peft_bf16", ">=", 5, "to bfloat16, faster than PEFT's merge"),
            Target("rss_ratio_peft", "<=", 0.1, "peak memory over that of PEFT's merge"),
            Target("rss_gib_1_layer", "<=", 0.6, "peak memory, one layer, GB"),
            Target("rss_gib_4_layers", "<=", 0.6, "peak memory, four layers, GB"),
        ),
    ),
    Benchmark(
        "export",
        ("export.py",),
        "Exporting to GGUF",
        (
            Target("gguf_over_io", "<=", 2.0, "time over reading, hashing and writing"),
            Target("rss_gb", "<=", 1.0, "peak memory, four layers and the vocabulary, GB"),
        ),
    ),
    Benchmark(
        "survival",
        ("survival.py",),
        "What of a fine-tune survives re-rounding",
        (Target("rho/gptq/0.01", "<=", 0.35, "relative error of calibrated rounding at ε = 0.01"),),
    ),
    Benchmark(
        "scaling",
        ("scaling.py",),
        "How a step's cost grows",
        tuple(
            Target(f"axes/{axis}/excess", "<=", 0.04, f"{axis}: exponent above the arithmetic's")
            for axis in ("tokens", "experts", "rank")
        ),
    ),
    Benchmark(
        "full_size_20b", ("full_size.py",), "gpt-oss-20b at full size, 512 tokens", FULL_SIZE
    ),
    Benchmark(
        "full_size_20b_2048",
        ("full_size.py", "tokens=2048"),
        "gpt-oss-20b at full size, 2,048 tokens",
        FULL_SIZE[:1],
    ),
    Benchmark(
        "full_size_120b",
        ("full_size.py", "model=gpt_oss_120b", "layers=4", "cold=1"),
        "Four layers of gpt-oss-120b, read from the disk",
    ),
)
