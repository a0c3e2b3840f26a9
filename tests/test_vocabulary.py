"""The vocabulary against openai-harmony, transformers and the released tokenizer's hash."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai_harmony as oh
import pytest
import transformers
from chats import LOOK_ALIKES, texts
from harmony_oracle import harmony_encoding
from hypothesis import given, settings

from gptoss_ft.errors import CheckpointError
from gptoss_ft.harmony import vocabulary as v
from gptoss_ft.harmony.messages import Conversation, Message
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer

__all__ = ["harmony_encoding"]

SAMPLE = "Olá <|end|>\n\n  it's 12345 日本語 👩‍👧 e\u0301 CamelCase //// \r\n\t" + "a" * 300


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    v.write_tokenizer_files(folder)
    return folder


@pytest.fixture(scope="module")
def released_content(released: Path) -> dict:
    return json.loads((released / "tokenizer.json").read_bytes())


@pytest.fixture(scope="module")
def tokenizer(released: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(released)


def edited(released: Path, out: Path, edit: Callable[[dict], None]) -> Path:
    content = json.loads((released / "tokenizer.json").read_bytes())
    edit(content)
    (out / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return out


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_ids_equal_openai_harmony_and_decode_back(
    harmony_encoding: oh.HarmonyEncoding, text: str
) -> None:
    ids = v.packaged_vocabulary().encode(text)
    assert list(ids) == harmony_encoding.encode(text, disallowed_special=())
    assert v.packaged_vocabulary().decode(ids) == text
    assert all(token_id < v.FIRST_SPECIAL for token_id in ids)


def test_the_buffer_we_read_is_that_of_the_public_method() -> None:
    # `Encoding._core_bpe` is not public; `encode_to_numpy` is, and slower on short texts.
    vocabulary = v.packaged_vocabulary()
    (encoding,) = vocabulary.encode.args  # type: ignore[attr-defined]
    for text in (*LOOK_ALIKES, SAMPLE):
        public = encoding.encode_to_numpy(text, disallowed_special=())
        assert vocabulary.encode(text) == array("i", public.tolist())


def test_special_ids_are_those_of_openai_harmony(harmony_encoding: oh.HarmonyEncoding) -> None:
    for token_id, name in v.SPECIAL_NAMES.items():
        if token_id != v.ENDOFPROMPT:  # openai-harmony has no name for it
            assert harmony_encoding.encode(name, allowed_special="all") == [token_id]
            assert v.packaged_vocabulary().decode([token_id]) == name


def test_every_row_of_the_model_decodes() -> None:
    decode = v.packaged_vocabulary().decode
    assert decode([v.VOCABULARY_ROWS - 1]) == "<|reserved_201087|>"
    assert decode([v.ENDOFPROMPT]) == "<|endofprompt|>"
    assert decode(v.packaged_vocabulary().encode("👩")[:1]) == "\ufffd"


def test_written_tokenizer_json_is_the_released_one(released: Path) -> None:
    digest = hashlib.sha256((released / "tokenizer.json").read_bytes()).hexdigest()
    assert digest == v.TOKENIZER_JSON_SHA256


def test_transformers_loads_the_written_files(tokenizer: Any) -> None:
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|startoftext|>", v.STARTOFTEXT)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|return|>", v.RETURN)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", v.ENDOFTEXT)
    plain = SAMPLE.replace("<|end|>", "")
    assert tokenizer(plain)["input_ids"] == list(v.packaged_vocabulary().encode(plain))


def test_a_checkpoint_with_the_released_tokenizer_equals_the_package(released: Path) -> None:
    vocabulary = v.load_vocabulary(released)
    assert vocabulary.identity == v.packaged_vocabulary().identity
    assert vocabulary.encode(SAMPLE) == v.packaged_vocabulary().encode(SAMPLE)
    assert v.load_vocabulary(released) is vocabulary


def test_a_resaved_tokenizer_is_still_the_released_one(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    edited(tmp_path, tmp_path, lambda content: content.update(padding=None))
    assert v.load_vocabulary(tmp_path).identity == v.packaged_vocabulary().identity


def _add_a_token(content: dict) -> None:
    content["added_tokens"].append(
        content["added_tokens"][-1] | {"id": 200019, "content": "<|tired|>", "special": False}
    )


def test_another_tokenizer_goes_through_its_own_backend(released: Path, tmp_path: Path) -> None:
    vocabulary = v.load_vocabulary(edited(released, tmp_path, _add_a_token))
    assert vocabulary.identity.startswith("tokenizer.json:")
    own = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    plain = "Olá, one <|tired|> two   three"
    assert list(vocabulary.encode(plain)) == own(plain)["input_ids"]
    assert 200019 in vocabulary.encode(plain)
    for text in (*LOOK_ALIKES, SAMPLE):
        ids = vocabulary.encode(text)
        assert ids == v.packaged_vocabulary().encode(text)
        assert not any(token_id >= v.FIRST_SPECIAL for token_id in ids)
        assert vocabulary.decode(ids) == text
    assert vocabulary.decode([v.START, v.RETURN]) == "<|start|><|return|>"


CHANGES: list[tuple[str, Any]] = [
    ("normalizer", {"type": "Lowercase"}),
    ("pre_tokenizer", None),
    ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}),
    ("model.merges", [["Ġ", "t"]]),
    ("model.vocab", {"a": 0}),
    ("model.dropout", 0.1),
    ("model.ignore_merges", False),
    ("model.type", "Unigram"),
]


@pytest.mark.parametrize(("key", "value"), CHANGES)
def test_a_tokenizer_that_cuts_otherwise_is_not_taken_for_the_released_one(
    released_content: dict, key: str, value: Any
) -> None:
    content = released_content | {"model": dict(released_content["model"])}
    part = content["model"] if key.startswith("model.") else content
    part[key.removeprefix("model.")] = value
    assert not v._is_released(content)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json") as caught:
        v.load_vocabulary(tmp_path)
    assert caught.value.problems[0].where == str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ['{"model": ', "[]", '{"model": {"vocab": []}}', "\xff"])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"is not JSON|holds no BPE model"):
        v.load_vocabulary(tmp_path)


def test_misplaced_specials_are_all_refused(released: Path, tmp_path: Path) -> None:
    def edit(content: dict) -> None:
        added = {token["content"]: token for token in content["added_tokens"]}
        added["<|start|>"]["id"], added["<|call|>"]["special"] = 200013, False
        added["<|end|>"]["content"] = "<|im_end|>"
        content["model"]["vocab"]["<|message|>"] = 7

    with pytest.raises(CheckpointError) as caught:
        v.load_vocabulary(edited(released, tmp_path, edit))
    named = [problem.what.split()[0] for problem in caught.value.problems]
    assert named == ["<|start|>", "<|end|>", "<|message|>", "<|call|>"]


PLAIN_CHATS = [
    [("user", "Hi"), ("assistant", "Hello", "greet")],
    [("system", "One"), ("developer", "Two"), ("user", "Hi"), ("assistant", "Hello", "")],
    [("user", " a\n"), ("assistant", "b", "why b"), ("user", "c"), ("assistant", "d", "why d")],
    [("system", ""), ("user", "Olá\n\n"), ("assistant", "\n b \n", ""), ("user", "c")],
]


@pytest.mark.parametrize("turns", PLAIN_CHATS)
@pytest.mark.parametrize("effort", ["low", "medium"])
def test_the_chat_template_equals_the_renderer(tokenizer: Any, turns: list, effort: str) -> None:
    messages = [Message(role, text, *thinking) for role, text, *thinking in turns]
    chat = [{"role": m.role, "content": m.content, "thinking": m.thinking} for m in messages]
    conversation = Conversation(tuple(messages), effort=effort)
    renderer = Renderer(v.packaged_vocabulary(), RenderOptions())
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, reasoning_effort=effort, return_dict=False
    )
    assert prompt == renderer.prompt(conversation)
    if messages[-1].role == "assistant":
        whole = tokenizer.apply_chat_template(chat, reasoning_effort=effort, return_dict=False)
        action = renderer.actions(conversation)[-1]
        assert whole == action.prompt_ids + action.target_ids


@pytest.mark.parametrize(
    ("chat", "tools", "message"),
    [
        ([{"role": "user", "content": "a"}], [{"type": "function"}], "reads plain chats"),
        ([{"role": "tool", "content": "a"}], None, "found role tool"),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
            None,
            "only at the start",
        ),
    ],
)
def test_the_chat_template_refuses_what_it_cannot_write(
    tokenizer: Any, chat: list, tools: list | None, message: str
) -> None:
    import jinja2

    with pytest.raises(jinja2.TemplateError, match=message):
        tokenizer.apply_chat_template(chat, tools=tools)
