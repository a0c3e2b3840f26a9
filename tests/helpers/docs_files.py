"""Files that the commands of the docs name and that no page shows: exports, folders, tables."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from export_rows import AI, ANSWER, HUMAN, ROWS, USER

PAIR = {"question": "Tide?", "answer": "High."}
CHAT = {"messages": [USER, ANSWER]}
OTHER_CHAT = {"messages": [{"role": "user", "content": "Wind?"}, ANSWER]}
_NODES = {
    "0": {"id": "0", "message": None, "parent": None},
    "1": {
        "id": "1",
        "parent": "0",
        "message": {
            "author": {"role": "user"},
            "content": {"content_type": "text", "parts": ["Tide?"]},
        },
    },
    "2": {
        "id": "2",
        "parent": "1",
        "message": {
            "author": {"role": "assistant"},
            "content": {"content_type": "text", "parts": ["High."]},
        },
    },
}
_REQUEST = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [USER]},
}
_RESULT = {
    "custom_id": "a",
    "response": {
        "status_code": 200,
        "body": {"choices": [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]},
    },
    "error": None,
}
_SDK_PARTS = [{"type": "text", "text": "High."}]
# File, its rows; where it ends in .json they are one array.
FILES: Mapping[str, list[dict[str, Any]]] = MappingProxyType(
    {
        "chatgpt/conversations.json": [{"title": "Tide", "mapping": _NODES, "current_node": "2"}],
        "claude/conversations.json": [ROWS["claude"]],
        "langsmith/runs.jsonl": [ROWS["langsmith run"]],
        "langsmith/dataset.jsonl": [ROWS["langsmith dataset"]],
        "weave.jsonl": [ROWS["weave"]],
        "log.jsonl": [ROWS["litellm"], ROWS["request and response"]],
        "tuning.jsonl": [ROWS["gemini"]],
        "bedrock.jsonl": [ROWS["bedrock log"]],
        "langchain.jsonl": [{"messages": [HUMAN, AI]}],
        "sdk.jsonl": [{"messages": [USER, {"role": "assistant", "parts": _SDK_PARTS}]}],
        "evals.jsonl": [ROWS["evals"]],
        "stored.jsonl": [ROWS["stored completion"]],
        "batch/requests.jsonl": [_REQUEST],
        "batch/results.jsonl": [_RESULT],
        "ultrachat_200k/data/train_sft-00000-of-00001.jsonl": [CHAT],
        "ultrachat_200k/data/train_gen-00000-of-00001.jsonl": [CHAT],
        "ultrachat_200k/data/test_sft-00000-of-00001.jsonl": [OTHER_CHAT],
        "gsm8k/main/train.jsonl": [PAIR],
        "gsm8k/socratic/train.jsonl": [PAIR],
        "s1k.jsonl": [
            {
                "question": "Two ferries a day, five days?",
                "solution": "10",
                "attempt": "Ten.",
                "deepseek_thinking_trajectory": "2 times 5.",
                "deepseek_attempt": "Ten ferries.",
                "gemini_thinking_trajectory": "Double five.",
                "gemini_attempt": "10 ferries.",
            }
        ],
    }
)


def write_files(folder: Path) -> None:
    """Writes them all."""
    for name, rows in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    (folder / "gsm8k/README.md").write_text(_CARD)
    (folder / "log.jsonl.gz").write_bytes(gzip.compress((folder / "log.jsonl").read_bytes()))
    with (folder / "observations.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, [*ROWS["langfuse CSV"]])
        table.writeheader()
        table.writerow(ROWS["langfuse CSV"])
    pq.write_table(pa.Table.from_pylist([ROWS["phoenix"]]), folder / "spans.parquet")


_CARD = """---
configs:
  - config_name: main
    data_files: main/train.jsonl
  - config_name: socratic
    data_files: socratic/train.jsonl
---
"""
_SHOWN = re.compile(r"`([\w./-]+\.jsonl)`[^`\n]*:\n\n```json\n(.*?)^```", re.DOTALL | re.MULTILINE)


def shown_files(text: str) -> list[tuple[str, str]]:
    """Finds the rows that a page shows after the name of their file and a colon."""
    return _SHOWN.findall(text)


def dialogues(text: str) -> list[tuple[str, str]]:
    """Finds the commands that a page shows with what they say: `$ gptoss-ft …`, then the output."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    parts = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(line, said) for line, _, said in (part.partition("\n") for part in parts)]


def missing_from(said: str, printed: str) -> list[str]:
    """Returns what a page shows of an output and was not printed; `…` stands for anything, and
    line breaks are those of the page.
    """
    printed = " ".join(printed.split())
    parts = (" ".join(part.split()) for part in said.split("…"))
    return [part for part in parts if part not in printed]
