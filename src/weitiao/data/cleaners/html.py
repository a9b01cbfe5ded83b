"""HTML in a text -> its words: tags away, entities as characters, paragraphs, lists and table cells on lines of their own.

Left as they are: `<` in formulas, tags that HTML does not have (<think>, <|im_end|>), fenced and inline code, a tag that is
only talked about (use <b> for bold), and what follows a fence that is never closed. Parsed by lexbor (selectolax), as a
browser does.
"""

import html
import re
from importlib.util import find_spec
from typing import Any

from weitiao.core.cleaner import TextCleaner
from weitiao.core.errors import RecipeError

INLINE = (
    "a", "abbr", "acronym", "b", "big", "br", "cite", "code", "col", "colgroup", "del", "dfn", "em", "font", "head",
    "html", "i", "iframe", "img", "input", "ins", "kbd", "label", "legend", "link", "mark", "meta", "nobr",
    "noscript", "o:p", "object", "param", "q", "s", "samp", "script", "select", "small", "span", "strike", "strong",
    "style", "sub", "sup", "td", "textarea", "th", "title", "tt", "u", "var", "video", "wbr",
)  # fmt: skip
VOID = {"br", "hr", "img", "input", "link", "meta", "wbr", "param", "col"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li",
    "main", "nav", "ol", "option", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
}  # fmt: skip
NAMES = "|".join((*INLINE, *sorted(BLOCKS)))
DROPPED = {"head", "script", "style", "noscript", "iframe", "object", "select", "textarea", "title"}
TAG = re.compile(rf"<(/?)({NAMES})((?:\s[^<>]*)?)/?>", re.IGNORECASE)
COMMENT = re.compile(r"<!--.*?-->|<!DOCTYPE[^<>]*>|<\?xml[^<>]*>|<!\[CDATA\[|\]\]>", re.IGNORECASE | re.DOTALL)
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
OTHER_SIGN = re.compile(rf"<(?!/?(?:{NAMES})(?:\s[^<>]*)?/?>)", re.IGNORECASE)
SPACES, BLANK_LINES = re.compile(r"[ \t\r\n\f\u00a0]+"), re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
HOLD = "\ue000{}\ue001"  # stands for a piece of code while the rest is parsed
HELD = re.compile("\ue000(\\d+)\ue001")


class Html(TextCleaner):
    """Take the words out of HTML: tags go, entities become characters, paragraphs, lists and cells get lines of their own;
    code in backquotes stays. It cannot see that unmarked HTML is the lesson: leave it out for data that teach HTML."""

    def check(self) -> None:
        """Whether selectolax is installed.

        Raises:
            RecipeError: it is not.
        """
        if find_spec("selectolax") is None:
            raise RecipeError("cleaner html needs the package selectolax: pip install 'weitiao[data]'")

    def clean(self, text: str) -> str:
        """The text of the HTML; a text without markup as it is."""
        if "<" not in text and "&" not in text:
            return text
        pieces = CODE.findall(text) if "`" in text else []
        numbers = iter(range(len(pieces)))
        rest = CODE.sub(lambda _: HOLD.format(next(numbers)), text) if pieces else text
        new = _words(rest) if is_markup(rest) else ENTITY.sub(_entity, rest)
        return HELD.sub(lambda match: pieces[int(match[1])], new) if pieces else new


def is_markup(text: str) -> bool:
    """Whether tags are used, not talked about: an element that is opened and closed, or line breaks within words."""
    opened: set[str] = set()
    for match in TAG.finditer(text):
        name = match[2].lower()
        if match[1]:
            if name in opened:
                return True
        elif name in VOID:
            if match[3].strip(" /") or not _is_mentioned(text, match):
                return True
        elif match[3] and "=" in match[3]:
            return True
        else:
            opened.add(name)
    return False


def _is_mentioned(text: str, match: re.Match[str]) -> bool:
    """A <br> with a space or a quotation mark on both sides, within a line."""
    before, after = text[: match.start()][-1:], text[match.end() :][:1]
    return before in tuple(" \"'“‘「（(") and after in tuple(" \"'”’」）).,，。;:") and "" not in (before, after)


def _entity(match: re.Match[str]) -> str:
    new = html.unescape(match[0])
    return " " if new == "\u00a0" else match[0] if new == "\x00" or new == "\ufffd" else new


def _words(text: str) -> str:
    from selectolax.lexbor import LexborHTMLParser

    text = COMMENT.sub("", text)
    tags = list(TAG.finditer(text))
    before, marked, after = text[: tags[0].start()], text[tags[0].start() : tags[-1].end()], text[tags[-1].end() :]
    has_blocks = any(x[2].lower() in BLOCKS | {"br"} for x in tags)
    pieces = [ENTITY.sub(_entity, before).rstrip(" ") if tags[0][2].lower() in BLOCKS else ENTITY.sub(_entity, before)]
    try:
        _collect(LexborHTMLParser(OTHER_SIGN.sub("&lt;", marked)).root, pieces, not has_blocks)
    except RecursionError:  # thousands of elements inside one another
        return TAG.sub("", text).strip()
    inside = "".join(pieces[1:])
    inside = BLANK_LINES.sub("\n\n", re.sub(r" +\n", "\n", inside) if has_blocks else inside)
    after = ENTITY.sub(_entity, after)
    if inside.endswith("\n"):
        after = after.lstrip(" ")
    inside = inside.rstrip("\n") if after.startswith("\n") or not after else inside
    inside = inside.lstrip("\n") if pieces[0].endswith("\n") or not pieces[0].strip() else inside
    return f"{pieces[0]}{inside}{after}".replace("\u00a0", " ").strip()


def _collect(node: Any, pieces: list[str], keep_spaces: bool) -> None:
    """Append the text of a node. Spaces are one space, as a browser shows them, except in <pre>."""
    for child in node.iter(include_text=True):
        name = child.tag
        if name == "-text":
            content = child.text_content or ""
            pieces.append(content if keep_spaces else _collapsed(content, pieces))
        elif name == "br":
            pieces.append("\n")
        elif name in DROPPED or name.startswith(("-", "!")):
            continue
        elif name in ("td", "th"):
            if not _at_line_start(pieces):
                pieces.append("\t")
            _collect(child, pieces, keep_spaces)
        else:
            _line_break(pieces, name)
            if name == "li":
                pieces.append("- ")
            _collect(child, pieces, keep_spaces or name == "pre")
            _line_break(pieces, name)


def _collapsed(content: str, pieces: list[str]) -> str:
    new = SPACES.sub(" ", content)
    return new.lstrip(" ") if _at_line_start(pieces) or (pieces and pieces[-1].endswith(" ")) else new


def _at_line_start(pieces: list[str]) -> bool:
    last = next((x for x in reversed(pieces) if x), "\n")
    return last.endswith(("\n", "\t", "- "))


def _line_break(pieces: list[str], name: str) -> None:
    if name in BLOCKS and name != "body" and pieces and not "".join(pieces[-2:]).endswith("\n\n"):
        if name in ("p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "blockquote", "pre"):
            pieces.append("\n" if pieces[-1].endswith("\n") else "\n\n")
        elif not pieces[-1].endswith("\n"):
            pieces.append("\n")
