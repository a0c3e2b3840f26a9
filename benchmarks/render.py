"""Rendering against the Hugging Face chat template with assistant mask, and TRL's own preparation.

    python benchmarks/render.py [conversations=2000] [repeats=5]

CPU seconds, children included, of turning the same conversations into ids and labels: ours from
JSONL straight to Arrow; the template from parsed rows to lists; TRL's SFTTrainer from a Dataset to
a Dataset. Repeats are interleaved; ratios are medians. Ids are compared with openai-harmony's, all
of them. The last line is one JSON object. Needs the dev extra.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
# fmt: off
WORDS = (
    "the", "tower", "opens", "at", "ten", "and", "closes", "when", "wind", "passes", "fifty",
    "kilometres", "an", "hour", "so", "please", "bring", "warm", "clothes", "because", "stairs",
    "are", "steep", "boat", "leaves", "every", "day", "from", "quay", "three", "o", "farol",
    "abre", "às", "dez", "horas", "e", "fecha", "quando", "vento", "cinquenta", "quilómetros",
    "por", "isso", "traga", "roupa", "quente", "café", "harbour", "tide", "berth", "ticket",
    "lantern", "museum", "Saturday", "children", "adults", "free", "12", "187", "1874", "3.20",
)
# fmt: on
INSTRUCTIONS = "You answer visitors of a lighthouse. Be brief, be kind, and never invent a price."
TOOL = {
    "type": "function",
    "function": {
        "name": "get_wind",
        "description": "Wind at the tower.\nIn kilometres an hour.",
        "parameters": {
            "type": "object",
            "properties": {
                "day": {"type": "string", "description": "Day of the week"},
                "hours": {"type": "integer", "description": "How far ahead", "default": 3},
            },
            "required": ["day"],
        },
    },
}


def conversation(generator: random.Random) -> dict[str, Any]:
    """A chat of three turns: half are plain, a quarter have analysis, a quarter a tool as well.

    With analysis our rows are three, because each turn is trained as it is sampled; the other two
    sides write one row, which trains turns after prompts that inference never shows.
    """

    def text(low: int, high: int) -> str:
        words = generator.choices(WORDS, k=generator.randint(low, high))
        return " ".join(words).capitalize() + "."

    def thinking(low: int, high: int) -> dict[str, str]:
        return {"thinking": text(low, high)} if kind != "plain" else {}

    kind = generator.choice(("plain", "plain", "analysis", "tool"))
    system = f"{INSTRUCTIONS} Today you are at desk {generator.randint(1, 5)}."
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    for turn in range(3):
        messages.append({"role": "user", "content": text(8, 60)})
        if kind == "tool" and turn == 2:
            call = {"name": "get_wind", "arguments": {"day": "Friday", "hours": turn}}
            called = {"id": "c1", "type": "function", "function": call}
            messages.append({"role": "assistant", **thinking(10, 40), "tool_calls": [called]})
            messages.append({"role": "tool", "tool_call_id": "c1", "content": text(5, 15)})
        messages.append({"role": "assistant", **thinking(10, 60), "content": text(20, 120)})
    return {"messages": messages, **({"tools": [TOOL]} if kind == "tool" else {})}


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process and its finished children."""

    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)

    def used() -> float:
        usages = [resource.getrusage(who) for who in both]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    before = used()
    work()
    return used() - before


def ours(file: Path) -> Callable[[], object]:
    """From JSONL to Arrow, without the cache."""
    from gptoss_ft.data.cache import render_source
    from gptoss_ft.data.options import DataOptions, SourceOptions
    from gptoss_ft.harmony.vocabulary import packaged_vocabulary

    vocabulary = packaged_vocabulary()

    def work() -> object:
        with tempfile.TemporaryDirectory() as cache:
            options = DataOptions(path=str(file), cache=cache, max_length=131_072)
            return render_source(
                SourceOptions(path=str(file)), options, vocabulary, None
            ).rows.num_rows

    return work


def template(rows: list[dict[str, Any]], tokenizer: Any) -> Callable[[], object]:
    """apply_chat_template with the assistant mask, and labels from it."""

    def work() -> object:
        result = []
        for row in rows:
            encoded = tokenizer.apply_chat_template(
                row["messages"],
                tools=row.get("tools"),
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            mask, ids = encoded["assistant_masks"], encoded["input_ids"]
            result.append((ids, [i if m else -100 for i, m in zip(ids, mask, strict=True)]))
        return result

    return work


def trl_preparation(
    rows: list[dict[str, Any]], tokenizer: Any, folder: Path
) -> Callable[[], object]:
    """SFTTrainer's `_prepare_dataset` with `assistant_only_loss`."""
    import datasets
    from transformers import AutoModelForCausalLM, GptOssConfig
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    datasets.disable_caching()
    config = GptOssConfig(
        num_hidden_layers=1, hidden_size=32, intermediate_size=32, num_local_experts=2,
        num_experts_per_tok=1, num_attention_heads=1, num_key_value_heads=1, vocab_size=201_088,
        layer_types=["full_attention"],
    )  # fmt: skip
    full = datasets.Dataset.from_list([{"tools": None, **row} for row in rows])
    arguments = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", max_length=None,
        assistant_only_loss=True, router_aux_loss_coef=0.0,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_config(config),
        args=arguments,
        train_dataset=full.select(range(2)),
        processing_class=tokenizer,
    )
    return lambda: trainer._prepare_dataset(full, tokenizer, arguments, False, None, "train")


def tokenizer_with_mask(folder: Path) -> Any:
    """The released tokenizer with TRL's template for gpt-oss, which marks assistant turns."""
    import trl
    from transformers import AutoTokenizer

    from gptoss_ft.harmony.vocabulary import write_tokenizer_files

    write_tokenizer_files(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    home = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (home / "gptoss_training.jinja").read_text()
    return tokenizer


def equal_to_harmony(rows: list[dict[str, Any]], folder: Path) -> int:
    """How many sampling actions' prompts and targets equal openai-harmony's; all must."""
    sys.path[:0] = [str(REPOSITORY / "tests" / name) for name in ("helpers", "oracles")]
    from harmony_oracle import (
        load_encoding,
        oracle_actions,
        oracle_messages,
        prompt_ids,
        render_ids,
    )

    from gptoss_ft.data.reading import parse
    from gptoss_ft.harmony.options import RenderOptions
    from gptoss_ft.harmony.render import Renderer
    from gptoss_ft.harmony.vocabulary import RETURN, packaged_vocabulary

    options, equal = RenderOptions(), 0
    renderer, encoding = Renderer(packaged_vocabulary(), options), load_encoding(folder)
    for number, row in enumerate(rows, start=1):
        example = parse(row, f"row {number}", "chat")
        messages = oracle_messages(example, options)
        expected = oracle_actions(messages)
        for action, (shown, sampled) in zip(renderer.actions(example), expected, strict=True):
            prompt = [messages[i] for i in shown]
            whole = render_ids(encoding, prompt + [messages[i] for i in sampled])
            if messages[sampled[-1]].channel == "final":
                whole[-1] = RETURN
            same = action.prompt_ids == prompt_ids(encoding, prompt)
            if not same or action.prompt_ids + action.target_ids != whole:
                raise SystemExit(f"row {number}: ids differ from openai-harmony's")
            equal += 1
    return equal


def linear_ratio() -> float:
    """CPU time of ten messages of 100,000 times "a" over that of a hundred of 10,000."""
    from gptoss_ft.harmony.vocabulary import packaged_vocabulary

    encode = packaged_vocabulary().encode
    times = {
        n: min(cpu_seconds(lambda n=n: encode("a" * n)) for _ in range(5))
        for n in (10_000, 100_000)
    }
    return times[100_000] / max(10 * times[10_000], 1e-9)


def main() -> None:
    """Runs the benchmark and prints its result."""
    settings = {"conversations": 2000, "repeats": 5}
    settings |= {k: int(v) for k, v in (argument.split("=") for argument in sys.argv[1:])}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    generator = random.Random(0)
    rows = [conversation(generator) for _ in range(settings["conversations"])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "chats.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        equal = equal_to_harmony(rows, folder)
        tokenizer = tokenizer_with_mask(folder)
        sides = {
            "ours": ours(file),
            "template": template(rows, tokenizer),
            "trl": trl_preparation(rows, tokenizer, folder / "trl"),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(settings["repeats"]):
            for name, work in sides.items():
                times[name].append(cpu_seconds(work))
                print(f"repeat {repeat}: {name} {times[name][-1]:.2f} CPU s", file=sys.stderr)
    ratio = {
        name: statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
        for name in ("template", "trl")
    }
    result = {
        "benchmark": "render",
        "speedup_template": round(ratio["template"], 2),
        "speedup_trl": round(ratio["trl"], 2),
        "cpu_s": {name: round(statistics.median(values), 3) for name, values in times.items()},
        "conversations": len(rows),
        "actions_equal_to_openai_harmony": equal,
        "linear_ratio": round(linear_ratio(), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
