"""Every command and example of README, docs and CONTRIBUTING does what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from docs_files import dialogues, missing_from, shown_files, write_files
from transformers import AutoModelForCausalLM, GptOssConfig

from gptoss_ft.adapters.model import AdapterInfo, adapter_parameters, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.cli import run
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.load import replace_layers
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.schema import key_problem
from gptoss_ft.train.options import TrainOptions

REPOSITORY = Path(__file__).parents[1]
# In the order in which their commands are run; all of them in one folder.
USER_PAGES = (
    "README.md",
    "docs/data.md",
    "docs/datasets.md",
    "docs/adapters.md",
    "docs/training.md",
    "docs/preference.md",
    "docs/merge.md",
    "docs/serve.md",
    "docs/performance.md",
    "docs/architecture.md",
    "docs/api.md",
)
PAGES = (*USER_PAGES, "CONTRIBUTING.md")
README, CONTRIBUTING = ((REPOSITORY / name).read_text() for name in ("README.md", PAGES[-1]))
ALL = "\n".join((REPOSITORY / name).read_text() for name in PAGES)
# Blocks of these languages are run or read; those of the others are only shown.
CHECKED = {"sh", "json", "yaml", "python"}
SHOWN = {"console", "text"}
# What a shell line may be besides a command of ours, which is run, and a target, which must exist.
UNCHECKED = ("git clone ", ".venv/bin/pre-commit ")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _lines(text: str) -> list[str]:
    """The lines of the shell blocks, and the whole commands in tables."""
    cells = "\n".join(re.findall(r"^\|.*", text, re.MULTILINE))
    in_tables = re.findall(r"`(gptoss-ft \w+ [^`]*=[^`]*)`", cells)
    return [line for line in "\n".join(_blocks(text, "sh")).splitlines() if line] + in_tables


class Workshop:
    """A folder with the README's row and pair, files of `docs_files`, and a tiny model in the place
    of gpt-oss.

    What a page makes is there for the pages after it; a command that stands on several pages is
    run once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[str] = set()
        (row,), (pair,) = (
            _blocks(_text(page), "json") for page in (PAGES[0], "docs/preference.md")
        )
        (folder / "my.jsonl").write_text(row * 8)
        (folder / "general.jsonl").write_text(row * 2)
        (folder / "pairs.jsonl").write_text(pair * 4)
        write_files(folder)
        write_tiny(folder / "gpt-oss-20b", TinyOptions(layers=1))

    def follow(self, page: str) -> None:
        """Writes the page's files, and runs its commands and its Python blocks."""
        for block in _blocks(_text(page), "yaml"):
            (name,) = re.findall(r"^# (\S+\.yaml)", block, re.MULTILINE)
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
        for name, rows in shown_files(_text(page)):
            (self.folder / name).write_text(rows)
        for line, said in dialogues(_text(page)):
            _check_dialogue(line, said)
        for line in _lines(_text(page)):
            if line.startswith("gptoss-ft ") and line not in self.done:
                _run_line(line)
                self.done.add(line)
        names: dict[str, Any] = {}
        for block in _blocks(_text(page), "python"):
            exec(compile(block, page, "exec"), names)


def _text(page: str) -> str:
    return (REPOSITORY / page).read_text()


def _check_dialogue(line: str, said: str) -> None:
    """Runs a command whose output is shown, refusals included."""
    _, command, *arguments = shlex.split(line, comments=True)
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = run(command, arguments)
    assert code == (2 if "fix:" in said else 0), f"{line}\n{printed.getvalue()}"
    assert not missing_from(said, printed.getvalue()), f"{line}\n{printed.getvalue()}"


def _run_line(line: str) -> None:
    _, command, *arguments = shlex.split(line, comments=True)
    if command == "generate":
        arguments.append("max_new_tokens=4")
    if command == "train" and "--cfg" not in arguments:
        arguments.append("trainer.max_steps=1")
    if command == "--help":
        return
    assert run(command, arguments) == 0, line


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The workshop after the README."""
    found = Workshop(tmp_path_factory.mktemp("workshop"))
    before = Path.cwd()
    os.chdir(found.folder)
    try:
        found.follow("README.md")
    finally:
        os.chdir(before)
    return found


def test_the_path_from_data_to_a_checkpoint(workshop: Workshop) -> None:
    used = {line.split()[1] for line in workshop.done}
    assert used >= {"preview", "train", "generate", "merge", "verify", "export"}
    for name in re.findall(r"name=([\w-]+)", README):
        assert (workshop.folder / "outputs" / name / "adapter").is_dir(), name
    model = AutoModelForCausalLM.from_pretrained(workshop.folder / "my-model")
    assert model.config.model_type == "gpt_oss"
    assert (workshop.folder / "my-model.gguf").is_file()


@pytest.mark.parametrize("page", USER_PAGES[1:])
def test_commands_and_examples_of_a_page(
    page: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop.folder)
    workshop.follow(page)


def test_every_block_and_shell_line_is_of_a_known_kind() -> None:
    for page in PAGES:
        languages = re.findall(r"^```(\w*)\n.*?^```", _text(page), re.DOTALL | re.MULTILINE)
        drawn = {""} if page == "CONTRIBUTING.md" else set()  # the drawing of the house
        assert set(languages) <= CHECKED | SHOWN | drawn, page
        for line in _lines(_text(page)):
            assert line.startswith(("gptoss-ft ", "make ", *UNCHECKED)), f"{page}: {line}"


@pytest.mark.parametrize(
    ("said", "missing"),
    [("a b\n…\n d", []), ("a  b c", []), ("a c", ["a c"]), ("a…x y\n", ["x y"])],
)
def test_an_output_that_was_not_printed_is_told(said: str, missing: list[str]) -> None:
    assert missing_from(said, "a b\n  c\nd\n") == missing


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([\w-]+)", ALL, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def _anchor(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_and_named_files_exist() -> None:
    for page in PAGES:
        text = _text(page)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith("https://"):
                continue
            path, _, anchor = link.partition("#")
            target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
            assert target.exists(), f"{page}: {link}"
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in map(_anchor, headings), f"{page}: {link}"
        for name in re.findall(r"\b((?:tests|scripts|benchmarks)/[\w/]+\.py)\b", text):
            assert (REPOSITORY / name).exists(), f"{page}: {name}"


def test_the_readme_links_every_page() -> None:
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert f"](docs/{page.name}" in README, page.name
        assert f"docs/{page.name}" in USER_PAGES, page.name


def test_recipes_and_adapters_are_named() -> None:
    for recipe in (REPOSITORY / "recipes").glob("*/*.yaml"):
        for page in ("README.md", "docs/training.md"):
            assert f"`{recipe.parent.name}={recipe.stem}`" in _text(page), page
    for choice in (REPOSITORY / "configs/adapter").glob("*.yaml"):
        for page in ("README.md", "docs/adapters.md"):
            assert f"| `{choice.stem}` |" in _text(page), page


def test_maps_are_named_with_what_they_say_of_themselves() -> None:
    for file in (REPOSITORY / "configs/maps").glob("*.yaml"):
        said = file.read_text().splitlines()[0].removeprefix("# ")
        assert f"| `{file.stem}` | {said} |" in _text("docs/datasets.md"), file.stem


def test_settings_that_are_named_exist() -> None:
    groups = "data|adapter|preference|tracker|model"
    named = set(re.findall(rf"`((?:{groups})\.[a-z_.]+)[`=]", ALL))
    assert len(named) > 20
    for key in named:
        assert key_problem(key, TrainOptions) is None, key


def test_no_table_is_broken_in_two() -> None:
    """A table's row after an empty line is shown as text; a table begins with a head and a rule."""
    for page in PAGES:
        lines = ["", *_text(page).splitlines(), ""]
        for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
            if line.startswith("|") and not before.startswith("|"):
                assert re.fullmatch(r"[|\- :]+", after), f"{page}: {line}"


def _parameters(options: AdapterOptions, layers: int = 24, experts: int = 32) -> float:
    """Millions of trained parameters on the shapes of the 20b, without weights."""
    config = GptOssConfig()  # its defaults are the 120b
    config.num_hidden_layers, config.num_local_experts = layers, experts
    config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        model = WeightedGptOss(config)
        replace_layers(model, config)
        model.requires_grad_(False)
        adapted = add_adapter(model, options, AdapterInfo((), "", ""))
    return sum(adapter_parameters(adapted).values()) / 1e6


ADAPTERS = ["attention", "lossless", "experts", "attention_experts", "router"]


@pytest.mark.parametrize("choice", ADAPTERS)
def test_parameter_counts_of_the_adapter_table(choice: str) -> None:
    kinds = yaml.safe_load((REPOSITORY / f"configs/adapter/{choice}.yaml").read_text())["kinds"]
    table = _text("docs/adapters.md")
    (count,) = re.findall(rf"^\| `{choice}` \|.*?\| (\d+) M \|", table, re.MULTILINE)
    assert round(_parameters(AdapterOptions(kinds))) == int(count)


def test_parameter_counts_in_the_recipes() -> None:
    """The figures that their comments give."""
    recipes = {path.stem: path.read_text() for path in (REPOSITORY / "recipes/sft").glob("*.yaml")}
    lora = _parameters(AdapterOptions(["attention", "experts"], r=32))
    assert f"About {lora:.0f} million" in recipes["lora_20b"]
    lossless = _parameters(AdapterOptions(["lossless"], r=64))
    rank_one = _parameters(AdapterOptions(["lossless"], r=1))
    low_rank = (lossless - rank_one) * 64 / 63
    assert f"{low_rank:.0f} million parameters of LoRA" in recipes["lossless_20b"]
    assert f"{lossless - low_rank:.0f} million of full tensors" in recipes["lossless_20b"]
    domain = _parameters(AdapterOptions(["attention", "experts"], r=64))
    assert f"{domain:.0f} million parameters" in recipes["domain_20b"]
    experts = _parameters(AdapterOptions(["experts"], r=16), layers=36, experts=128)
    assert f"cost {experts / 4:.0f} million" in recipes["lora_120b"]
    assert f"rank 4 is {experts:.0f} million" in recipes["lora_120b"]
