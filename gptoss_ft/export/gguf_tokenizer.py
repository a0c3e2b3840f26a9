"""The Harmony tokenizer and the chat template of a checkpoint as GGUF metadata.

llama.cpp's name for this tokenizer is the model `gpt2` (byte-level BPE over a list of merges) with
the pre-tokenizer `gpt-4o` (the o200k pattern). The list of tokens is padded to the rows of the
model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_ft.errors import Problem
from gptoss_ft.export.source import Source, tokenizer_problems
from gptoss_ft.harmony.vocabulary import ENDOFPROMPT, ENDOFTEXT, RETURN, STARTOFTEXT

if TYPE_CHECKING:
    from gguf import GGUFWriter

MODEL = "gpt2"
PRE_TOKENIZER = "gpt-4o"


def problems(source: Source) -> Iterator[Problem]:
    """Finds a tokenizer that is not Harmony's or does not fit the model, and a missing chat
    template.
    """
    yield from tokenizer_problems(source)
    rows = source.config["vocab_size"]
    if rows <= ENDOFPROMPT:
        yield Problem(
            "the model has fewer rows than Harmony has tokens",
            str(source.folder / "config.json"),
            f"vocab_size {rows}, where {ENDOFPROMPT + 1} are needed",
            "use config.json and weights of the same checkpoint",
        )
    if chat_template(source.folder) is None:
        yield Problem(
            "there is no chat template, and the runtime would fall back on another model's",
            str(source.folder / "chat_template.jinja"),
            mend="copy chat_template.jinja from the released checkpoint",
        )


def header_bytes(folder: Path) -> int:
    """Bounds the size of the metadata: tokenizer.json holds the same lists more verbosely."""
    return (folder / "tokenizer.json").stat().st_size


def chat_template(folder: Path) -> str | None:
    """Reads the checkpoint's chat template from its own file or from tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return None
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None


def describe_tokenizer(writer: GGUFWriter, source: Source) -> None:
    """Adds tokens, their types, merges, the special ids and the chat template."""
    from gguf import TokenType

    tokenizer = json.loads((source.folder / "tokenizer.json").read_bytes())
    names = _token_names(tokenizer)
    specials = {token["id"] for token in tokenizer["added_tokens"]}
    types = {True: TokenType.CONTROL, False: TokenType.NORMAL}
    rows = range(source.config["vocab_size"])
    writer.add_tokenizer_model(MODEL)
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([names.get(row, f"[PAD{row}]") for row in rows])
    writer.add_token_types(
        [types[row in specials] if row in names else TokenType.UNUSED for row in rows]
    )
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(STARTOFTEXT)
    writer.add_eos_token_id(RETURN)
    writer.add_pad_token_id(ENDOFTEXT)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template(source.folder) or "")


def _token_names(tokenizer: dict[str, Any]) -> dict[int, str]:
    names = {number: name for name, number in tokenizer["model"]["vocab"].items()}
    return names | {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
