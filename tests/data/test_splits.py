"""Folders, copies of Hub repositories and saved datasets: which of their files are read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from gptoss_ft.data.dataset import check_data
from gptoss_ft.data.options import DataOptions, SourceOptions
from gptoss_ft.data.sources.files import Found, find_files
from gptoss_ft.data.sources.read import read_source
from gptoss_ft.data.sources.splits import split_of
from gptoss_ft.errors import DataError, Problem


def folder_of(root: Path, *names: str) -> Path:
    """Writes files of one row each, which says their name."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": name}) + "\n")
    return root


def found(root: Path, subset: str = "", split: str = "") -> Found:
    return find_files(SourceOptions(path=str(root), subset=subset, split=split))


def names(root: Path, subset: str = "", split: str = "") -> list[str]:
    return [f.relative_to(root).as_posix() for f in found(root, subset, split).files]


def refused(root: Path, subset: str = "", split: str = "") -> Problem:
    with pytest.raises(DataError) as caught:
        found(root, subset, split)
    return caught.value.problems[0]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("train-00000-of-00001", "train"),
        ("train-00000-of-00001-a09b74b3ef9c3b56", "train"),
        ("train_2", "train"),
        ("train_part3", "train"),
        ("gsm8k_train", "train"),
        ("train_sft-00000-of-00003", "train_sft"),
        ("train.success.oss-00000-of-00001", "train.success.oss"),
        ("train.raw", "train.raw"),
        ("test_prefs", "test_prefs"),
        ("eval", "test"),
        ("my-dev", "validation"),
        ("val_1", "validation"),
        ("valid", "validation"),
        ("trainer", ""),
        ("constrain", ""),
        ("latest", ""),
        ("contest_1", ""),
        ("device", ""),
        ("chats", ""),
    ],
)
def test_names_say_splits(name: str, split: str) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (("a.jsonl", "b/c.jsonl"), ("a.jsonl", "b/c.jsonl")),
        (("train.jsonl", "test.jsonl", "valid.jsonl"), ("train.jsonl",)),
        (
            ("train-0-of-2.jsonl", "train-1-of-2.jsonl"),
            ("train-0-of-2.jsonl", "train-1-of-2.jsonl"),
        ),
        (("split/train/a.jsonl", "split/eval/train.jsonl"), ("split/train/a.jsonl",)),
        (
            ("data/train_sft-0-of-1.jsonl", "data/test_sft-0-of-1.jsonl"),
            ("data/train_sft-0-of-1.jsonl",),
        ),
        (("a_train.jsonl", "b_train.jsonl", "b_test.jsonl"), ("a_train.jsonl", "b_train.jsonl")),
        (("train.jsonl", "more.jsonl"), ("train.jsonl",)),
        (("math-00000-of-00002.jsonl", "code.jsonl"), ("code.jsonl", "math-00000-of-00002.jsonl")),
        (("data/en-00000-of-00001.jsonl",), ("data/en-00000-of-00001.jsonl",)),
    ],
)
def test_a_folder_trains_its_train_split(
    tmp_path: Path, there: tuple[str, ...], read: tuple[str, ...]
) -> None:
    assert names(folder_of(tmp_path, *there)) == list(read)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder_of(tmp_path, "train.jsonl", "dev.jsonl", "test.jsonl", "more.jsonl", "b.md", "c.py")
    (chunk,) = read_source(SourceOptions(path=str(tmp_path)))
    assert chunk.notes == (
        f"files beside the rows not read in {tmp_path}: b.md",
        f"files that hold no rows not read in {tmp_path}: c.py",
        f"files that name no split not read in {tmp_path}: more.jsonl",
        "splits not read, only train: validation, test",
    )


@pytest.mark.parametrize(
    ("wanted", "read"),
    [
        ("test_sft", ["test_sft.jsonl"]),
        ("test", ["test_sft.jsonl"]),
        ("train_gen", ["train_gen.jsonl"]),
        ("train_gen+train_sft", ["train_gen.jsonl", "train_sft.jsonl"]),
    ],
)
def test_a_split_is_chosen_by_its_name(tmp_path: Path, wanted: str, read: list[str]) -> None:
    folder_of(tmp_path, "train_sft.jsonl", "train_gen.jsonl", "test_sft.jsonl")
    assert names(tmp_path, split=wanted) == read


@pytest.mark.parametrize(
    ("there", "wanted", "what", "arguments"),
    [
        (
            ("train_sft.jsonl", "train_gen.jsonl", "test.jsonl"),
            "",
            "there are several splits to train on",
            ["data.split=train_gen", "data.split=train_sft", "data.split=train_gen+train_sft"],
        ),
        (
            ("train.jsonl", "train_extra.jsonl"),
            "",
            "there are several splits to train on",
            ["data.split=train", "data.split=train_extra", "data.split=train+train_extra"],
        ),
        (
            ("train_sft.jsonl", "train_gen.jsonl"),
            "train",
            "several splits are a train split",
            ["data.split=train_gen", "data.split=train_sft", "data.split=train_gen+train_sft"],
        ),
        (("test.jsonl",), "", "there is no train split", ["data.split=test"]),
        (("train.jsonl",), "tests", "there is no split `tests`", ["data.split=train"]),
        (
            ("data/code-00000-of-00001.jsonl", "data/math-00000-of-00001.jsonl"),
            "",
            "there is no train split",
            ["data.split=code", "data.split=math", "data.split=code+math"],
        ),
    ],
)
def test_every_argument_that_an_error_prints_chooses(
    tmp_path: Path, there: tuple[str, ...], wanted: str, what: str, arguments: list[str]
) -> None:
    problem = refused(folder_of(tmp_path, *there), split=wanted)
    assert (problem.what, problem.where) == (what, str(tmp_path))
    said = shlex.split(problem.mend.partition(";")[0])
    assert [word for word in said if word.startswith("data.")] == arguments
    for argument in arguments:
        name, _, value = argument.partition("=")
        assert not DataOptions(path=str(tmp_path), split=value).problems("data")
        assert names(tmp_path, split=value), name


def test_a_held_out_file_beside_one_without_a_split(tmp_path: Path) -> None:
    problem = refused(folder_of(tmp_path, "chats.jsonl", "validation.jsonl"))
    assert problem.mend == f"say data.path={tmp_path / 'chats.jsonl'}"


def test_a_file_given_by_its_path_is_taken_as_it_is(tmp_path: Path) -> None:
    folder_of(tmp_path, "test.jsonl", "README.md")
    assert found(tmp_path / "test.jsonl").files == [tmp_path / "test.jsonl"]
    assert found(tmp_path / "README.md").files == [tmp_path / "README.md"]
    assert list(read_source(SourceOptions(path=str(tmp_path / "test.jsonl"), split="test")))
    for split in ("train", "other"):
        with pytest.raises(DataError, match=f"no split `{split}`"):
            list(read_source(SourceOptions(path=str(tmp_path / "test.jsonl"), split=split)))
    assert "leave out data.subset" in refused(tmp_path / "test.jsonl", subset="main").mend


NEVER = (
    "README.md", "nested/readme.md", "LICENSE", "LICENSE.txt", "licence.md", "CITATION.cff",
    "CHANGELOG.md", "dataset_infos.json", "dataset_info.json", "state.json", "config.json",
    ".gitattributes", ".hidden.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".git/x.jsonl",
    "a.jsonl.lock", "__MACOSX/a.jsonl", ".cache/huggingface/download/a.json", "NOTICE.md",
    "README_zh.md", "DATASET_CARD.md",
)  # fmt: skip


@pytest.mark.parametrize("name", NEVER)
def test_what_is_beside_the_data_is_never_data(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path, name, "a.jsonl")
    if name == "README.md":
        (tmp_path / name).write_text("---\nlicense: mit\n---\n# A card\n")
    assert found(tmp_path) == Found([tmp_path / "a.jsonl"], [])
    (tmp_path / "a.jsonl").unlink()
    assert refused(tmp_path).what == "the folder holds no data file"


def test_copies_in_other_types_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, "train.csv", "train-00000-of-00001.parquet", "other.jsonl")
    problem = refused(tmp_path)
    assert "in several types of file" in problem.what
    assert f"data.path={tmp_path / 'train.csv'}" in problem.mend
    assert names(folder_of(tmp_path / "mixed", "a.csv", "b.jsonl")) == ["a.csv", "b.jsonl"]
    beside = folder_of(tmp_path / "c", "a.parquet", "b.parquet", "stats.json")
    assert names(beside) == ["a.parquet", "b.parquet"]
    assert found(beside).notes == [f"files beside the rows not read in {beside}: stats.json"]


def card(root: Path, text: str) -> Path:
    (root / "README.md").write_text(f"---\nlicense: mit\n{text}\n---\n# A card\n")
    return root


SUBSETS = """configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - {split: train, path: [socratic/a*, "socratic/**/b.jsonl"]}"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    files = ("main/train-0.jsonl", "main/test-0.jsonl", "socratic/a.jsonl", "socratic/x/b.jsonl")
    return card(folder_of(tmp_path, *files, "extra.jsonl"), SUBSETS)


def test_a_card_says_which_files_are_which_subset(clone: Path) -> None:
    problem = refused(clone)
    assert problem.found == "the subsets main, socratic"
    assert problem.mend.startswith("say data.subset=main or data.subset=socratic")
    assert names(clone, "main") == ["main/train-0.jsonl"]
    assert names(clone, "main", "test") == ["main/test-0.jsonl"]
    assert names(clone, "socratic") == ["socratic/a.jsonl", "socratic/x/b.jsonl"]
    assert refused(clone, "mian").what == "there is no subset `mian`"
    card(clone, SUBSETS.replace("config_name: socratic", "config_name: socratic\n  default: true"))
    assert names(clone) == ["socratic/a.jsonl", "socratic/x/b.jsonl"]


@pytest.mark.parametrize(
    ("data_files", "read"),
    [
        ("data_files: main/*", ["main/test-0.jsonl", "main/train-0.jsonl"]),
        ("data_files: ['*.jsonl', main/train-0.jsonl]", ["extra.jsonl", "main/train-0.jsonl"]),
        ("data_files: {train: './main/t[er]*'}", ["main/test-0.jsonl", "main/train-0.jsonl"]),
        ("data_files: '**/?.jsonl'", ["socratic/a.jsonl", "socratic/x/b.jsonl"]),
        ("data_dir: socratic", ["socratic/a.jsonl", "socratic/x/b.jsonl"]),
        ("drop_labels: true", ["main/train-0.jsonl"]),
    ],
)
def test_patterns_of_a_card(clone: Path, data_files: str, read: list[str]) -> None:
    assert names(card(clone, f"configs:\n- config_name: x\n  {data_files}")) == read


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("configs: [", "the front matter of the dataset's card is not YAML"),
        ("configs: all", "the card's `configs` are not read"),
        ("configs: [{config_name: a, data_files: 3}]", "the card's `data_files` are not read"),
        (
            "configs: [{config_name: a, data_files: gone/*}]",
            "none of the files is here that the card gives to the subset a",
        ),
    ],
)
def test_a_card_that_cannot_be_followed_is_refused(clone: Path, text: str, what: str) -> None:
    problem = refused(card(clone, text))
    assert problem.what == what and problem.mend


def test_a_folder_without_a_card_is_read_whole_or_by_its_folders(tmp_path: Path) -> None:
    folder_of(tmp_path, "main/train.jsonl", "other/train.jsonl")
    assert names(tmp_path) == ["main/train.jsonl", "other/train.jsonl"]
    assert names(tmp_path, "other") == ["other/train.jsonl"]
    assert "data.subset=main or data.subset=other" in refused(tmp_path, "x").mend


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_pointer_of_git_lfs_is_no_data(tmp_path: Path, name: str) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    (tmp_path / name).write_text(text)
    for path in (tmp_path, tmp_path / name):
        problem = refused(path)
        assert problem.what == "the file has not been downloaded"
        assert problem.mend == f"git -C {tmp_path} lfs pull"


def test_saved_datasets(tmp_path: Path) -> None:
    parts = {
        name: datasets.Dataset.from_list([{"text": f"{name} {i}"} for i in range(3)])
        for name in ("train", "test")
    }
    parts["train"].save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    assert texts(tmp_path / "one") == ["train 0", "train 1", "train 2"]
    assert texts(tmp_path / "both") == ["train 0", "train 1", "train 2"]
    assert found(tmp_path / "both").notes == ["splits not read, only train: test"]
    assert texts(tmp_path / "both", split="test") == ["test 0", "test 1", "test 2"]
    next((tmp_path / "one").glob("*.arrow")).unlink()
    assert refused(tmp_path / "one").what == "files of the saved dataset are missing"
    (tmp_path / "both/dataset_dict.json").write_text("{}")
    assert refused(tmp_path / "both").what == "the file does not describe a saved dataset"


def texts(path: Path, split: str = "") -> list[str]:
    chunks = read_source(SourceOptions(path=str(path), split=split))
    return [row["text"] for chunk in chunks for _, row in chunk.rows if isinstance(row, Mapping)]


def test_subset_and_split_beside_sources_are_refused() -> None:
    options = DataOptions(sources=[SourceOptions(path="a")], subset="b", split="c")
    problems = options.problems("data")
    assert [problem.where for problem in problems] == ["data.subset", "data.split"]
    assert problems[1].mend == "write it beside each source: {path: FILE, split: …}"


def test_the_settings_reach_the_files(tmp_path: Path) -> None:
    folder_of(tmp_path, "train.jsonl")
    (tmp_path / "test.jsonl").write_text("no JSON")
    check_data(DataOptions(path=str(tmp_path)))
    with pytest.raises(DataError, match="not JSON"):
        check_data(DataOptions(path=str(tmp_path), split="test"))


def test_hub_errors_name_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, subset: str | None, **settings: Any) -> dict[str, Any]:
        asked.append((name, subset, settings))
        if subset != "main":
            raise ValueError("Config name is missing.")
        return {"train_sft": [{"text": "a"}], "train_gen": [{"text": "b"}], "test": []}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["main", "other"])

    def mend(**chosen: str) -> str:
        with pytest.raises(DataError) as caught:
            list(read_source(SourceOptions(path="someone/chats", **chosen), hub=True))
        return caught.value.problems[0].mend

    assert mend().startswith("say data.subset=main or data.subset=other;")
    assert mend(subset="man").startswith("say data.subset=main or data.subset=other;")
    several = mend(subset="main")
    assert several.startswith("say data.split=train_sft or data.split=train_gen or ")
    source = SourceOptions(path="someone/chats", subset="main", split="train_gen")
    (chunk,) = read_source(source, hub=True)
    assert chunk.rows == [(1, {"text": "b"})]
    assert chunk.notes == ("splits not read, only train_gen: train_sft, test",)
    assert asked[-1] == ("someone/chats", "main", {"streaming": True})
