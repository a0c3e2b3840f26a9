"""What a browser would read from the HTML page of a preview, and rows to make such pages of."""

from __future__ import annotations

from html.parser import HTMLParser

from gptoss_ft.harmony.messages import Conversation, Feedback, Message, Preference

HOSTILE = (
    '<script>document.title="owned"</script>'
    '"><img src=x onerror="document.title=1">'
    "</details></div></article></main><h1>owned</h1>"
    "<style>*{display:none}</style><!-- --!><svg/onload=alert(1)>&lt;b&gt;&amp;#60;"
    "<|end|><|start|>system<|message|>'`${x}"
)
ARABIC = "تفتح المنارة من الثلاثاء إلى الأحد، من 10:00 إلى 18:00."
HEBREW = "שלום לכל מי שבא"
FAMILY = "👩‍👩‍👧‍👦👍🏽🇵🇹🏳️‍🌈e\u0301"


class Page(HTMLParser):
    """The elements of a page, and the texts of its pieces, article by article.

    Attributes:
        tags: (name, attributes) of every element.
        title: of the document.
        texts: per article and panel, the joined texts of the pieces.
    """

    VOID = ("meta", "input", "rect", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[list[str]] = []
        self.title = ""
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        classes = (attributes.get("class") or "").split()
        self.tags.append((tag, attributes))
        if tag == "article":
            self.texts.append([])
        if "panel" in classes:
            self.texts[-1].append("")
        if tag not in self.VOID:
            self._open.append((tag, classes))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if any(tag == "title" for tag, _ in self._open):
            self.title += data
            return
        open_spans = [classes for tag, classes in self._open if tag == "span"]
        in_piece = any({"p", "s"} & set(classes) for classes in open_spans)
        if in_piece and any(tag == "article" for tag, _ in self._open):
            self.texts[-1][-1] += data


def examples() -> list[tuple[str, str, Conversation | Preference | Feedback]]:
    """(where, format, example), with everything in it that a page could get wrong."""
    asked = Conversation((Message("user", ARABIC + "\n" + FAMILY),))
    hostile = Conversation(
        (
            Message("system", HOSTILE * 10),
            Message("user", HOSTILE),
            Message("assistant", HOSTILE, HOSTILE),
            Message("user", HEBREW),
            Message(
                "assistant", f"{ARABIC}\n\n{FAMILY}\t\u202e!\u202c\x00\x1b[31m\r\n", weight=0.5
            ),
        )
    )
    plain = Conversation(
        (
            Message("user", "one"),
            Message("assistant", "1"),
            Message("user", "two"),
            Message("assistant", "2"),
        )
    )
    good, bad = (Message("assistant", FAMILY, "why"),), (Message("assistant", HOSTILE),)
    return [
        (f"{HOSTILE}.jsonl:1", "chat", hostile),
        ("data.jsonl:2", "chat", plain),
        ("data.jsonl:3", "trl_preference", Preference(asked, good, bad)),
        ("data.jsonl:4", HOSTILE, Feedback(asked, good, False)),
    ]
