"""Log-probabilities of the reference: computed once, kept on disk, used by every later run.

The reference is the model as it is before the first step: the base, with a fresh adapter switched
off, or the base with the adapter that training goes on from. No second model or adapter is held
beside the one that is trained; the log-probabilities of its completions are columns of the data.

They are kept one completion at a time, under a key of the prompt's and the completion's tokens, in
a folder that stands for base, adapter, device and the code that computes them. What changes in the
data is computed anew, everything else is found again, whatever the order, the split or the weights
of the channels. A pass that is killed goes on from its last part.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from gptoss_ft.adapters.model import AdaptedModel
from gptoss_ft.context import Say
from gptoss_ft.data.cache import code_version
from gptoss_ft.data.pack import ListColumn
from gptoss_ft.data.pairs import list_array
from gptoss_ft.data.preferences import Branch, PreferenceData, Selection, write_rows
from gptoss_ft.files import atomic_file, code_digest
from gptoss_ft.train.scores import score_rated_rows, score_rows

# A killed pass loses what was computed since its last part.
SECONDS_PER_PART = 30.0
_SCHEMA = pa.schema({"key": pa.uint64(), "logps": pa.list_(pa.float32())})


@dataclass(frozen=True)
class Reference:
    """Who scores, and where the scores are kept.

    Attributes:
        base: fingerprint of the base.
        adapter: fingerprint of the adapter that training goes on from; empty when the base alone
            is the reference.
        home: folder of the cache.
        shared_prompt: whether a prompt is computed once for both completions.
        tokens_at_once: of one forward pass.
    """

    base: str
    adapter: str
    home: Path
    shared_prompt: bool
    tokens_at_once: int

    def folder(self, model: AdaptedModel) -> Path:
        """Returns the folder of this reference's scores: a GPU computes in bfloat16, a CPU does
        not.
        """
        parts = [self.base, self.adapter, model.device.type, scoring_version()]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        return self.home / name


def scoring_version() -> str:
    """Changes with the code that turns tokens into log-probabilities, and with its libraries."""
    files = ("documents.py", "train/scores.py", "data/collate_pairs.py")
    code = code_digest("model", "adapters", "mxfp4", *files)
    return " ".join([code, *(version(name) for name in ("torch", "transformers", "peft"))])


def training_rows(
    data: PreferenceData, model: AdaptedModel, reference: Reference | None, home: Path, say: Say
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Writes the rows to train and to validate on, with the reference's scores if there is one.

    Args:
        data: what `prepare_pairs` or `prepare_ratings` returned.
        model: before its first step; computes what is not in the cache.
        reference: None for methods that have none.
        home: folder in which the rows are kept, for runs of the same data and reference.
        say: where lines for people go.
    """
    scored = reference.folder(model).name if reference else "none"
    home = home / f"{data.fingerprint}-{code_version()}-{scored}"
    selections = {"train": data.train, "validation": data.validation}
    wanted = {part: rows for part, rows in selections.items() if len(rows)}
    missing = [part for part in wanted if not (home / f"{part}.arrow").is_file()]
    if reference is not None and not missing:
        say(f"reference: cached ({reference.folder(model)})")
    elif reference is not None:
        store = _filled(data, [wanted[part] for part in missing], model, reference, say)
        for part in missing:
            columns = _columns(data, wanted[part], store)
            write_rows(data, wanted[part], columns, home / f"{part}.arrow")
    else:
        for part in missing:
            write_rows(data, wanted[part], {}, home / f"{part}.arrow")
    found = {part: datasets.Dataset.from_file(str(home / f"{part}.arrow")) for part in wanted}
    return found["train"], found.get("validation")


@dataclass
class _Store:
    """Scores on disk, and which completions they are of.

    Attributes:
        keys: uint64, sorted.
        places: int64, of each key the index of its list.
        scores: the lists; None when there are none yet.
    """

    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    scores: ListColumn | None = None

    @classmethod
    def read(cls, folder: Path) -> _Store:
        """Reads all parts of a folder, memory-mapped."""
        tables = []
        for file in sorted(folder.glob("*.arrow")):
            tables.append(pa.ipc.open_stream(pa.memory_map(str(file))).read_all())
        if not tables:
            return cls()
        table = pa.concat_tables(tables)
        keys, places = np.unique(table.column("key").to_numpy(), return_index=True)
        return cls(keys, places, ListColumn.of(table.column("logps")))

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Returns which completions are there, bool."""
        return np.isin(keys, self.keys)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Returns the index of each completion's list; all of them must be there."""
        return self.places[np.searchsorted(self.keys, keys)]


def _filled(
    data: PreferenceData,
    selections: Sequence[Selection],
    model: AdaptedModel,
    reference: Reference,
    say: Say,
) -> _Store:
    """Computes what the store lacks of some selections, and returns it."""
    folder = reference.folder(model)
    folder.mkdir(parents=True, exist_ok=True)
    store, started = _Store.read(folder), time.monotonic()
    computed = total = 0
    for selection in selections:
        branches = data.branches(selection)
        keys = np.stack([_keys(data, selection, branch) for branch in branches])
        positions = _missing(keys, store)
        total += keys.size
        computed += positions.size * len(branches)
        if positions.size:
            _compute(data, selection, positions, keys, model, reference)
            store = _Store.read(folder)
    seconds = time.monotonic() - started
    if not computed:
        say(f"reference: cached ({folder})")
    elif computed == total:
        say(f"reference: computed for {total:,} completions in {seconds:,.1f} s, kept in {folder}")
    else:
        say(
            f"reference: computed for {computed:,} of {total:,} completions in {seconds:,.1f} s, "
            f"the others cached ({folder})"
        )
    return store


def _missing(keys: np.ndarray, store: _Store) -> np.ndarray:
    """Finds positions with a completion that is not there, equal ones once; `keys` is `[branches,
    rows]`.
    """
    positions = np.flatnonzero(~store.holds(keys).all(axis=0))
    _, first = np.unique(keys[:, positions], axis=1, return_index=True)
    return positions[np.sort(first)]


def _keys(data: PreferenceData, selection: Selection, branch: Branch) -> np.ndarray:
    """Hashes each completion with its prompt, uint64."""
    found = np.empty(len(selection), np.uint64)
    for positions in _parts(np.arange(len(selection)), _lengths(data, selection), 2**20):
        prompts = _lists(data, "prompt_ids", selection.rows[positions])
        completions = _lists(data, branch.ids, branch.rows[positions])
        for position, prompt, completion in zip(positions, prompts, completions, strict=True):
            state = hashlib.blake2b(len(prompt).to_bytes(4, "little"), digest_size=8)
            state.update(prompt.tobytes())
            state.update(completion.tobytes())
            found[position] = int.from_bytes(state.digest(), "little")
    return found


def _lists(data: PreferenceData, name: str, rows: np.ndarray) -> list[np.ndarray]:
    """Reads some lists of a column of rendered rows, int32."""
    column = ListColumn.of(data.rows.data.table.column(name))
    return np.split(column.gather(rows), np.cumsum(column.lengths(rows))[:-1])


def _lengths(data: PreferenceData, selection: Selection) -> np.ndarray:
    """Counts the tokens that are computed for each row: prompt and all its completions."""
    table = data.rows.data.table
    lengths = table.column("prompt_length").to_numpy()[selection.rows].astype(np.int64)
    for branch in data.branches(selection):
        lengths += ListColumn.of(table.column(branch.ids)).lengths(branch.rows)
    return lengths


def _parts(positions: np.ndarray, lengths: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Yields consecutive positions, as many as have so many tokens together, at least one."""
    start, used = 0, 0
    for i, position in enumerate(positions.tolist()):
        if i > start and used + lengths[position] > tokens:
            yield positions[start:i]
            start, used = i, 0
        used += lengths[position]
    if len(positions):
        yield positions[start:]


def _compute(
    data: PreferenceData,
    selection: Selection,
    positions: np.ndarray,
    keys: np.ndarray,
    model: AdaptedModel,
    reference: Reference,
) -> None:
    """Scores the completions at some positions and keeps them, a part every now and then."""
    branches, lengths = data.branches(selection), _lengths(data, selection)
    writer = _PartWriter(reference.folder(model))
    with (
        writer.closing(),
        _as_reference(model, reference),
        _progress(int(lengths[positions].sum())) as progress,
    ):
        for part in _parts(positions, lengths, reference.tokens_at_once):
            prompts = _lists(data, "prompt_ids", selection.rows[part])
            completions = [_lists(data, b.ids, b.rows[part]) for b in branches]
            scores = _scores(model, prompts, completions, reference.shared_prompt)
            for branch_keys, values in zip(keys, scores, strict=True):
                writer.add(branch_keys[part], values)
            progress.update(int(lengths[part].sum()))


def _progress(tokens: int) -> tqdm:
    """Shows tokens scored, rate and remaining time on stderr if that is a terminal."""
    return tqdm(total=tokens, desc="reference", unit="token", unit_scale=True, disable=None)


@contextmanager
def _as_reference(model: AdaptedModel, reference: Reference) -> Iterator[None]:
    """Switches the model to how it scores for the reference, and back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with nullcontext() if reference.adapter else model.disable_adapter():
            yield
    finally:
        model.train(was_training)


def _scores(
    model: AdaptedModel,
    prompts: list[np.ndarray],
    completions: list[list[np.ndarray]],
    shared_prompt: bool,
) -> list[list[np.ndarray]]:
    """Computes log-probabilities of each token, float32, of one or two completions of each
    prompt.
    """
    if len(completions) == 1:
        rows = [
            {"prompt_ids": prompt.tolist(), "completion_ids": completion.tolist()}
            for prompt, completion in zip(prompts, completions[0], strict=True)
        ]
        return [[scores.numpy() for scores in score_rated_rows(model, rows)]]
    pairs = [
        {"prompt_ids": prompt.tolist(), "chosen_ids": one.tolist(), "rejected_ids": other.tolist()}
        for prompt, one, other in zip(prompts, *completions, strict=True)
    ]
    found = score_rows(model, pairs, shared_prompt)
    return [[pair[side].numpy() for pair in found] for side in (0, 1)]


class _PartWriter:
    """Writes scores to a folder, a part every now and then.

    Attributes:
        folder: where the parts go.
        keys, scores: what is not written yet.
        written: when the last part was, by the monotonic clock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys: list[np.ndarray] = []
        self.scores: list[np.ndarray] = []
        self.written = time.monotonic()

    def add(self, keys: np.ndarray, scores: list[np.ndarray]) -> None:
        """Scores of some completions, a vector for each key."""
        self.keys.append(keys)
        self.scores += scores
        if time.monotonic() - self.written >= SECONDS_PER_PART:
            self.write()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Writes what is left at the end, also when the pass is interrupted."""
        try:
            yield
        finally:
            self.write()

    def write(self) -> None:
        """Writes a part under a name that follows from its contents: equal passes agree on it."""
        if not self.keys:
            return
        keys = np.concatenate(self.keys)
        lengths = np.array([len(part) for part in self.scores])
        lists = list_array(np.concatenate(self.scores), lengths)
        table = pa.table({"key": pa.array(keys), "logps": lists}, schema=_SCHEMA)
        name = hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()
        with (
            atomic_file(self.folder / f"{name}.arrow") as temporary,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_stream(sink, _SCHEMA) as writer,
        ):
            writer.write_table(table)
        self.keys, self.scores, self.written = [], [], time.monotonic()


def _columns(
    data: PreferenceData, selection: Selection, store: _Store
) -> dict[str, tuple[ListColumn, np.ndarray]]:
    """Returns the scores of every completion of a selection, which must be in the store."""
    if store.scores is None:
        raise ValueError("the reference has no scores")
    return {
        branch.scores: (store.scores, store.rows(_keys(data, selection, branch)))
        for branch in data.branches(selection)
    }
