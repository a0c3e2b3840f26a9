"""The builtin tools gpt-oss was trained with, declared in the format's own words.

The model knows the tools by exactly this text, so none of it can be put differently.
Source: the Harmony response format (OpenAI), section "Built-in tools"; the text is that of
openai-harmony 0.0.8.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from gptoss_ft.harmony.messages import Namespace, ToolSpec

_BROWSER = """\
Tool for browsing.
The `cursor` appears in brackets before each browsing display: `[{cursor}]`.
Cite information from the tool using the following format:
`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.
Do not quote more than 10 words directly from the tool output.
sources=web (default: web)"""

_SEARCH = "Searches for information related to `query` and displays `topn` results."

_OPEN = """\
Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing \
`num_lines` lines.
Valid link ids are displayed with the formatting: `【{id}†.*】`.
If `cursor` is not provided, the most recent page is implied.
If `id` is a string, it is treated as a fully qualified URL associated with `source`.
If `loc` is not provided, the viewport will be positioned at the beginning of the document or \
centered on the most relevant passage, if available.
Use this function without `id` to scroll to a new location of an opened page."""

_FIND = "Finds exact matches of `pattern` in the current page, or the page given by `cursor`."

_PYTHON = """\
Use this tool to execute Python code in your chain of thought. The code will not be shown to the \
user. This tool should be used for internal reasoning, but not for code that is intended to be \
visible to the user (e.g. when creating plots, tables, or files).

When you send a message containing Python code to python, it will be executed in a stateful \
Jupyter notebook environment. python will respond with the output of the execution or time out \
after 120.0 seconds. The drive at '/mnt/data' can be used to save and persist user files. Internet \
access for this session is UNKNOWN. Depends on the cluster."""

_STRING = {"type": "string"}
_UNSET = {"type": "number", "default": -1}


def _parameters(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


BUILTIN_NAMESPACES = MappingProxyType(
    {
        "browser": Namespace(
            "browser",
            _BROWSER,
            (
                ToolSpec(
                    "search",
                    _SEARCH,
                    _parameters(
                        {
                            "query": _STRING,
                            "topn": {"type": "number", "default": 10},
                            "source": _STRING,
                        },
                        "query",
                    ),
                ),
                ToolSpec(
                    "open",
                    _OPEN,
                    _parameters(
                        {
                            "id": {"type": ["number", "string"], "default": -1},
                            "cursor": _UNSET,
                            "loc": _UNSET,
                            "num_lines": _UNSET,
                            "view_source": {"type": "boolean", "default": False},
                            "source": _STRING,
                        }
                    ),
                ),
                ToolSpec(
                    "find", _FIND, _parameters({"pattern": _STRING, "cursor": _UNSET}, "pattern")
                ),
            ),
        ),
        "python": Namespace("python", _PYTHON, ()),
    }
)
