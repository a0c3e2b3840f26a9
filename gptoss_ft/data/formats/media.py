"""Images, sound and video: gpt-oss reads text only.

A row with a column, key or part of them is refused, unless the user trains the text without; then
what stands for them in the texts goes too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, is_empty, shell_list
from gptoss_ft.data.formats.harmless import fold

_IMAGE = """
    image images img imgs picture pictures photo photos pixel_values image_bytes image_base64
    input_image input_images multi_modal_data
"""
_AUDIO = "audio audios input_audio speech sound wav waveform audio_bytes audio_base64"
_VIDEO = "video videos input_video video_bytes"
# Names that are as often of something else; they count where a text has a place for the thing.
_LINKS = """
    image_url image_urls image_path image_paths image_file image_files image_id audio_url audio_path
    audio_paths audio_file video_url video_path video_paths video_file file files frames
"""
MEDIA = frozenset(f"{_IMAGE} {_AUDIO} {_VIDEO}".split())
LINKS = frozenset(_LINKS.split())
# Types of content parts, and the column that stands for them in data.ignore.
PARTS: Mapping[str, str] = MappingProxyType(
    {name: "images" for name in ("image", "image_url", "input_image", "img", "image_file")}
    | {name: "audios" for name in ("audio", "audio_url", "input_audio")}
    | {name: "videos" for name in ("video", "video_url", "input_video")}
)
PLACEHOLDER = re.compile(
    r"<\|?(?:image|images|img|audio|sound|speech|video|image_pad|audio_pad|video_pad|"
    r"vision_start|vision_end|audio_bos|audio_eos|image_soft_token|(?:image|audio|video)_\d+|"
    r"(?:image|audio|video)_placeholder)\|?>(?:[ \t]*\n)?"
    r"|\[(?:IMG|IMAGE|IMG_BREAK|IMG_END|AUDIO|VIDEO)\](?:[ \t]*\n)?",
    re.IGNORECASE,
)
WITHOUT = "rows trained without their images, sound or video, as data.ignore says"


@lru_cache(maxsize=1024)
def _media_columns(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the columns that are media, and those that may be links to media."""
    folded = [(name, fold(str(name))) for name in names]
    return (
        tuple(name for name, plain in folded if plain in MEDIA),
        tuple(name for name, plain in folded if plain in LINKS),
    )


def check_media(row: Mapping[str, Any], state: RowState) -> Mapping[str, Any]:
    """Refuses a row with media in a column, or drops their places from the texts if they are
    ignored.

    Returns:
        the row to read on with; the same one where there are no media.
    """
    columns, links = _media_columns(tuple(row))
    if not (columns or links):
        return row
    found = [name for name in columns if not is_empty(row[name])]
    linked = [name for name in links if not is_empty(row[name])]
    if linked and _has_place({name: value for name, value in row.items() if name not in linked}):
        found += linked
    if not found:
        return row
    if not _may_ignore(found, row, state):
        return row
    state.note(WITHOUT)
    return {name: value if name in found else without_places(value) for name, value in row.items()}


def _may_ignore(found: list[str], row: Mapping[str, Any], state: RowState) -> bool:
    refused = [name for name in found if name not in state.ignore]
    for name in refused:
        mend = f"say {shell_list('data.ignore', refused)} to train the text without"
        state.refuse(f"gpt-oss reads text only, and `{name}` is not text", name, row[name], mend)
    return not refused


def _has_place(value: Any) -> bool:
    """Returns whether a text of the row has a place for an image, a sound or a video."""
    if isinstance(value, str):
        return PLACEHOLDER.search(value) is not None
    if isinstance(value, OBJECTS):
        return any(_has_place(item) for item in value.values())
    return isinstance(value, list) and any(_has_place(item) for item in value)


def without_places(value: Any) -> Any:
    """Drops the places of media from all texts of a value."""
    if isinstance(value, str):
        return _text_without(value)
    if isinstance(value, OBJECTS):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return value


def _text_without(text: str) -> str:
    if PLACEHOLDER.search(text) is None:
        return text
    opened = PLACEHOLDER.match(text.lstrip()) is not None
    left = PLACEHOLDER.sub("", text)
    closed = PLACEHOLDER.fullmatch(text.rstrip(), text.rstrip().rfind("<")) is not None
    left = left.lstrip() if opened else left
    return left.rstrip() if closed else left
