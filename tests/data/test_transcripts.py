"""Texts that a chat template wrote: split into the turns they were written from, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from format_rows import WHERE, problems
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ft.data.formats.markups import BAR, ENDS, MARKUPS
from gptoss_ft.data.formats.transcripts import split_answer, split_prompt, transcript
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import parse, read_row
from gptoss_ft.harmony.messages import Conversation, Document, Message, Preference

Turns = list[tuple[str, str]]
TURNS: Turns = [("system", "Be kind."), ("user", "Sea?"), ("assistant", "Wet."), ("user", "Sky?")]
TURNS += [("assistant", "Blue.")]


def headed(header: str, end: str, before: str = "", **names: str) -> Callable[[Turns], str]:
    """A writer for markups in which a header with the role opens a turn."""

    def write(turns: Turns) -> str:
        return before + "".join(
            header.format(names.get(role, role)) + text + end for role, text in turns
        )

    return write


def llama_2(turns: Turns) -> str:
    system = turns[0][1] if turns[0][0] == "system" else ""
    rest = [text for role, text in turns if role != "system"]
    written = (
        f"<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{rest[0]}" if system else f"<s>[INST] {rest[0]}"
    )
    for i, text in enumerate(rest[1:]):
        written += f" [/INST] {text} </s>" if i % 2 == 0 else f"<s>[INST] {text}"
    return written


def mistral(turns: Turns) -> str:
    around = {
        "system": "[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]",
        "user": "[INST]{}[/INST]",
        "assistant": "{}</s>",
    }
    return "<s>" + "".join(around[role].format(text) for role, text in turns)


def deepseek(turns: Turns) -> str:
    around = {
        "system": "{}",
        "user": f"<{BAR}User{BAR}>{{}}",
        "assistant": f"<{BAR}Assistant{BAR}>{{}}<{BAR}end▁of▁sentence{BAR}>",
    }
    start = f"<{BAR}begin▁of▁sentence{BAR}>"
    return start + "".join(around[role].format(text) for role, text in turns)


CAPITAL = {"system": "System", "user": "User", "assistant": "Assistant"}
UPPER = {role: role.upper() for role in CAPITAL}
TOKENS: dict[str, Callable[[Turns], str]] = {
    "chatml": headed("<|im_start|>{}\n", "<|im_end|>\n"),
    "phi 4": headed("<|im_start|>{}<|im_sep|>", "<|im_end|>"),
    "kimi": headed("<|im_user|>{}<|im_middle|>", "<|im_end|>"),
    "llama 3": headed(
        "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>", "<|begin_of_text|>"
    ),
    "llama 4": headed("<|header_start|>{}<|header_end|>\n\n", "<|eot|>", "<|begin_of_text|>"),
    "gemma": headed("<start_of_turn>{}\n", "<end_of_turn>\n", "<bos>", assistant="model"),
    "command r": headed(
        "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN>",
        **UPPER | {"assistant": "CHATBOT"},
    ),
    "granite": headed("<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>\n"),
    "phi 3": headed("<|{}|>\n", "<|end|>\n"),
    "zephyr": headed("<|{}|>\n", "</s>\n"),
    "tulu": headed("<|{}|>\n", "\n"),
    "openassistant": headed("<|{}|>", "<|endoftext|>", user="prompter"),
    "glm": headed("<|{}|>\n", "", "[gMASK]<sop>"),
    "exaone": headed("[|{}|]", "[|endofturn|]\n"),
    "mistral": mistral,
    "llama 2": llama_2,
    "deepseek": deepseek,
    "nemotron": headed("<extra_id_1>{}\n", "\n", "<extra_id_0>System\n\n", **CAPITAL),
}
WORDS: dict[str, Callable[[Turns], str]] = {
    "guanaco": headed("### {}: ", "", **CAPITAL | {"user": "Human"}),
    "solar": headed("### {}:\n", "\n\n", **CAPITAL),
    "alpaca": headed(
        "### {}:\n", "\n\n", **CAPITAL | {"user": "Instruction", "assistant": "Response"}
    ),
    "glaive": headed("{}: ", " <|endoftext|>\n\n\n", **UPPER),
    "openchatkit": headed("<{}>: ", "\n", user="human", assistant="bot"),
    "plain": headed("{}: ", "\n", **CAPITAL),
    "langchain": headed("{}: ", "\n", system="System", user="Human", assistant="AI"),
}
# Their header has no role for a system message.
UNTOLD: dict[str, Callable[[Turns], str]] = {
    "hh": headed("\n\n{}: ", "", user="Human", assistant="Assistant"),
    "vicuna": lambda turns: "".join(
        f"USER: {text} " if role == "user" else f"ASSISTANT: {text}</s>" for role, text in turns
    ),
    "moss": lambda turns: "".join(
        f"[Human]: {text}<eoh> " if role == "user" else f"[MOSS]: {text}<eoa> "
        for role, text in turns
    ),
    "baize": lambda turns: (
        headed("[|{}|] ", "\n", user="Human", assistant="AI")(turns) + "[|Human|] "
    ),
    "openchat": headed("GPT4 Correct {}: ", "<|end_of_turn|>", **CAPITAL),
}
WRITERS = TOKENS | WORDS | UNTOLD


def messages(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def told(turns: Turns, name: str) -> Turns:
    return [turn for turn in turns if not (name in UNTOLD and turn[0] == "system")]


texts = st.text(alphabet="abz äß漢.,!?'\"-*=()1\n\t", min_size=1).map(str.strip).filter(bool)
systems = st.none() | texts


@st.composite
def conversations(draw: st.DrawFn) -> Turns:
    system, count = draw(systems), draw(st.integers(1, 3))
    turns = [("system", system)] if system else []
    for _ in range(count):
        turns += [("user", draw(texts)), ("assistant", draw(texts))]
    return turns


@pytest.mark.parametrize("name", sorted(WRITERS))
@given(turns=conversations())
def test_what_a_template_writes_is_split_into_the_same_turns(name: str, turns: Turns) -> None:
    turns = told(turns, name)
    found = transcript(WRITERS[name](turns))
    assert found is not None and not found.fault and not found.unclosed
    assert found.messages == messages(turns)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_markup_of_the_table_is_written_here(name: str) -> None:
    found = [transcript(write(told(TURNS, key))) for key, write in WRITERS.items()]
    assert {markup.name for markup in MARKUPS} == {one.name for one in found if one}
    alone = transcript(WRITERS[name](told(TURNS, name)[:-1]))
    assert alone is None or alone.fault == "it ends before the assistant's answer"


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Z")), min_size=1))
def test_a_text_that_begins_otherwise_is_none(text: str) -> None:
    assert transcript("Once " + text + TOKENS["chatml"](TURNS)) is None
    assert split_prompt("- " + text) is None


@pytest.mark.parametrize(
    "text",
    [
        "In Llama 2 a question stands in [INST] and [/INST].",
        "User: alone on the stage.",
        "Human: a being.\nHe thinks.",
        "### Instruction:\nPress the button.\n",
        "### Usage\n\n### Assistant\n",
        "<s>struck</s>",
        "<html><user>x</user>",
        "System: up\nUsers: 3",
        "Question: why?\nAnswer: so.",
        "A chat between a cat and a dog.",
        "Below is an instruction. Follow it.",
        "[INSTRUMENT] [/INST]",
        "<|start|>user",
    ],
)
def test_ordinary_texts_are_none(text: str) -> None:
    assert transcript(text) is None and split_prompt(text) is None
    assert parse({"text": text + " "}, WHERE) == Document(text + " ")


@given(
    st.lists(
        st.sampled_from(
            (
                *ENDS,
                "### Human:",
                "### Assistant:",
                "[INST]",
                "[/INST]",
                "<|im_start|>user\n",
                "<|im_start|>assistant\n",
                "<|user|>",
                "<|assistant|>",
                "USER: ",
                " ASSISTANT: ",
                "<<SYS>>",
                "<</SYS>>",
                "\n\nHuman:",
                "\n\nAssistant:",
                "<s>",
                "a",
                "\n",
                " ",
                "### Input:\n",
                "### Instruction:\n",
                "\n### Response:\n",
                "<|start_header_id|>",
            )
        )
    ).map("".join)
)
def test_no_text_breaks_the_splitter(text: str) -> None:
    for found in (transcript(text), split_prompt(text)):
        assert found is None or found.fault or found.messages
    split_answer(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<|im_start|>user\nSea?<|im_end|>\n", "it ends before the assistant's answer"),
        ("<|im_start|>joker\nSea?<|im_end|>\n", "the role `joker` is not known"),
        ("<|im_start|>user\nSea?<|im_end|>\nAnd <|im_start|>assistant\nWet.", "text stands"),
        ("<|im_start|>user\nSea?<|im_start|>assistant\nWet.<|im_end|>", "a turn is not closed"),
        ("<|im_start|>user\n<|im_end|><|im_start|>assistant\nWet.<|im_end|>", "the user's turn is"),
        ("[INST] Sea? [/INST] Wet. [INST] Sky?", "it ends before the assistant's answer"),
        ("[INST] <<SYS>>\nBe kind. Sea? [/INST] Wet.", "<<SYS>> is not closed"),
        ("[INST] Sea? [INST] Sky? [/INST] Wet.", "two turns of the user follow each other"),
        ("User: a\nUser: b\nAssistant: c", "two turns of the user follow each other"),
        ("### Human: a ### Assistant: b ### Assistant: c", "two turns of the assistant"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_split_is_refused_unless_it_is_said_to_be_text(
    text: str, fault: str
) -> None:
    ((what, where, mend),) = problems({"text": text})
    assert "cannot be split: " + fault in what and where == "text"
    assert "data.format=text" in mend
    assert parse({"text": text}, WHERE, "text") == Document(text)


def test_a_transcript_is_read_as_a_conversation_and_said_so() -> None:
    text = TOKENS["chatml"]([*TURNS[:2], ("assistant", "<think>Water.</think>Wet.")])
    read = read_row({"text": text}, WHERE)
    wet = Message("assistant", "Wet.", "Water.")
    assert read.example == Conversation((Message(*TURNS[0]), Message(*TURNS[1]), wet))
    assert dict(read.notes) == {"text in ChatML split into turns": 1}
    cut = read_row({"text": text.removesuffix("<|im_end|>\n")}, WHERE)
    assert "text in ChatML whose last turn is not closed, perhaps cut off" in cut.notes
    assert read_row({"text": text}, WHERE, Reading("text")).example == Document(text)


def test_alpacas_input_stands_under_its_instruction_and_its_preamble_is_left_out() -> None:
    sentence = (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
    )
    body = "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    asked = {"role": "user", "content": "Add.\n\n1 2"}
    answer = {"role": "assistant", "content": "3"}
    whole, prompt = transcript(sentence + body + "3"), split_prompt(sentence + body)
    assert whole and whole.messages == [asked, answer]
    assert prompt and prompt.messages == [asked]
    other = transcript("Below is an order of the king.\n\n" + body + "3")
    assert other and other.messages[0] == {
        "role": "system",
        "content": "Below is an order of the king.",
    }


def test_a_tool_result_of_glaive_is_one() -> None:
    text = "USER: a ASSISTANT: <functioncall> {} <|endoftext|>\nFUNCTION RESPONSE: 3\nASSISTANT: b"
    found = transcript(text)
    assert found and [turn["role"] for turn in found.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


HH = "\n\nHuman: Sea?\n\nAssistant: Wet.\n\nHuman: Sky?\n\nAssistant:"
ASKED = (Message("user", "Sea?"), Message("assistant", "Wet.", weight=0.0), Message("user", "Sky?"))
BLUE = Message("assistant", "Blue.")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": HH, "completion": " Blue."},
        {"prompt": HH, "completion": "Blue.<|eot_id|>"},
        {"prompt": HH.removesuffix("\n\nAssistant:"), "completion": "\n\nAssistant: Blue."},
        {"prompt": TOKENS["chatml"](TURNS[1:-1]), "completion": "Blue.<|im_end|>\n"},
        {
            "prompt": TOKENS["chatml"](TURNS[1:-1]) + "<|im_start|>assistant\n",
            "completion": "Blue.</s>",
        },
        {
            "prompt": TOKENS["chatml"](TURNS[1:-1]),
            "completion": "<|im_start|>assistant\nBlue.<|im_end|>",
        },
        {"messages": HH + " Blue."},
    ],
)
def test_a_prompt_may_be_a_transcript(row: dict[str, Any]) -> None:
    example = parse(row, WHERE)
    assert isinstance(example, Conversation)
    assert [(m.role, m.content.strip()) for m in example.messages] == TURNS[1:]


def test_pairs_of_transcripts_share_their_prompt() -> None:
    row = {"chosen": HH + " Blue.", "rejected": HH + " Red."}
    red = Message("assistant", "Red.")
    expected = Preference(Conversation(ASKED), (BLUE,), (red,))
    assert parse(row, WHERE) == parse(row | {"prompt": HH}, WHERE) == expected
    assert parse({"prompt": HH, "chosen": "Blue.", "rejected": "Red."}, WHERE) == expected


def test_a_prompt_or_a_side_that_cannot_be_split_is_refused() -> None:
    ((what, where, _),) = problems({"prompt": "[INST] a [/INST] b", "completion": "c"})
    assert "ends in an assistant's turn" in what and where == "prompt"
    found = problems({"chosen": "[INST] a [/INST]", "rejected": "[INST] a [/INST] b"})
    assert "`chosen` is a conversation in [INST] that cannot be split" in found[0][0]


@pytest.mark.parametrize(
    "text", ["Blue. ", "<s>Red</s>", "Use `<|im_end|>` at the end", "if a:\n    b"]
)
def test_an_answer_without_markup_stays_as_it_is(text: str) -> None:
    assert split_answer(text) == (text, "")
