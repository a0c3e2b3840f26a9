"""A prepared run: what is gathered without writing, and a tiny base that is not there yet."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chats import write_chats
from preference_runs import SMALL, preference_options, write_base

from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.vocabulary import load_vocabulary, packaged_vocabulary
from gptoss_ft.model.tiny import TinyOptions, describe_tiny
from gptoss_ft.train.options import ModelOptions, TrainOptions
from gptoss_ft.train.prepare import PreparedRun, open_run, prepare
from gptoss_ft.train.run import train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def _options(base: Path, home: Path, **settings: Any) -> TrainOptions:
    chats = write_chats(home / "chats.jsonl", 4)
    return replace(preference_options(base, chats, home), preference=None, **settings)


def _prepare(options: TrainOptions, **arguments: Any) -> PreparedRun:
    return prepare(options, lambda line: None, **arguments)


def test_a_described_tiny_model_is_what_is_written(base: Path) -> None:
    written, expected = open_checkpoint(base), describe_tiny(base, TinyOptions(**SMALL))
    assert written.config == expected.config
    assert written.tensors.keys() == expected.tensors.keys()
    for name, info in written.tensors.items():
        assert replace(info, offset=0) == expected.tensors[name]
    assert written.is_packed and expected.is_packed and written.nbytes == expected.nbytes


def test_the_packaged_vocabulary_is_that_of_a_written_tiny_model(base: Path) -> None:
    assert load_vocabulary(base).identity == packaged_vocabulary().identity


def test_a_dry_run_is_described_first_and_written_when_it_is_opened(
    base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tiny"
    model = ModelOptions(str(path), tiny=TinyOptions(**SMALL))
    options = _options(path, tmp_path, model=model)
    prepared = _prepare(options)
    assert {file.name for file in tmp_path.iterdir()} == {"chats.jsonl", "cache"}
    assert not prepared.base.is_written and prepared.base.fingerprint == ""
    opened, manifest = open_run(prepared, "name: run\n")
    assert opened.base.fingerprint == fingerprint(open_checkpoint(base))
    assert manifest.base_fingerprint == opened.base.fingerprint
    assert (tmp_path / "run" / "manifest.json").is_file()
    again = _prepare(replace(options, name="again"))
    assert again.base.is_written and again.rendered.summary.cached
    assert again.rendered.fingerprint == prepared.rendered.fingerprint


def test_data_is_read_only_when_it_is_asked_for(base: Path, tmp_path: Path) -> None:
    options = _options(base, tmp_path)
    (tmp_path / "chats.jsonl").unlink()
    prepared = _prepare(options, with_data=False)
    assert prepared.data is None and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="without its data"):
        open_run(prepared, "")


def test_each_shard_is_sampled_once(base: Path, tmp_path: Path) -> None:
    """Fingerprint, check of the adapter and what is saved with it share one reading."""
    first = train(_options(base, tmp_path, adapter=AdapterOptions(["router"])), "", print)
    opened: Counter[str] = Counter()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(f"{base}/model-00000"):
            opened[str(arguments[0])] += 1

    sys.addaudithook(count)
    tensors = sum(
        info.file.name.startswith("model-00000") for info in open_checkpoint(base).tensors.values()
    )
    opened.clear()
    headers = sum(opened.values())
    open_checkpoint(base)
    headers = sum(opened.values())
    opened.clear()
    adapter = AdapterOptions(["router"], init=str(first.adapter))
    _prepare(_options(base, tmp_path, adapter=adapter, name="second"))
    assert sum(opened.values()) == tensors + headers


def test_bad_rows_that_are_left_out_are_written_to_the_runs_folder(
    base: Path, tmp_path: Path
) -> None:
    options = _options(base, tmp_path)
    with (tmp_path / "chats.jsonl").open("a") as stream:
        stream.write("no JSON\n")
    with pytest.raises(DataError, match=r"data\.on_bad=drop"):
        _prepare(options)
    options = replace(options, data=replace(options.data, on_bad="drop"))
    for name in ("run", "again"):  # the second one finds the rows in the cache
        prepared = _prepare(replace(options, name=name))
        open_run(prepared, "name: run\n")
        (line,) = (tmp_path / name / "dropped.jsonl").read_text().splitlines()
        assert json.loads(line)["where"] == f"{tmp_path / 'chats.jsonl'}:5"
    assert prepared.rendered.summary.cached
