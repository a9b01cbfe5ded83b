"""Word documents: one record per section, from a heading to the next; the line is the number of its first paragraph.

Headings are `# lines`, list items `- lines`, tables `| lines |` as in Markdown. The sections, joined by blank lines, are
the whole document. Text that was inserted under "track changes" counts, deleted text does not. Headers and footers of
pages are left out; footnotes and comments are counted and reported.

The format is ECMA-376, part 1, chapter 17. python-docx was compared: it leaves out insertions and content controls.
"""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from weitiao.core.errors import DataError
from weitiao.core.example import SourceLocation
from weitiao.core.finding import Finding
from weitiao.core.messages import Message
from weitiao.data.records import Record
from weitiao.data.unpacking import read_file, refuse_large_parts

ENDINGS = (".docx",)
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
STRICT = b"http://purl.oclc.org/ooxml/wordprocessingml/main"  # the other namespace of the standard
FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
NOT_TEXT = {FALLBACK, *(W + x for x in ("del", "moveFrom", "pPr", "rPr", "instrText", "delText", "tblPr", "sdtPr"))}
SIGNS = {W + "tab": "\t", W + "br": "\n", W + "cr": "\n", W + "noBreakHyphen": "-"}
HEADING = re.compile(r"(?:heading|标题|標題)\s*([1-9])", re.IGNORECASE)
TITLES = ("title", "标题", "標題")
MAX_LEVEL = 6  # of Markdown's headings
MAX_DEPTH = 200  # of elements; Word writes about 30


@dataclass(frozen=True)
class Block:
    """A paragraph or a table."""

    number: int
    """Counted from 1, empty ones too."""
    text: str
    is_heading: bool


def read(path: Path, encoding: str) -> Iterator[Record]:
    """One record per section, with the column `text`.

    Raises:
        DataError: the file is no Word document, or is damaged.
    """
    section: list[Block] = []
    for block in _blocks(path):
        if block.is_heading and any(not x.is_heading for x in section):
            yield _record(path, section)
            section = []
        section.append(block)
    if section:
        yield _record(path, section)


def findings(path: Path) -> Iterator[Finding]:
    """Footnotes and comments, which are not read."""
    document = _part(path, "word/document.xml")
    names = {"footnotes": "footnoteReference", "endnotes": "endnoteReference", "comments": "commentReference"}
    counts = {name: sum(1 for _ in document.iter(W + tag)) for name, tag in names.items()}
    if any(counts.values()):
        message = Message(
            "{file}: not read are {footnotes:,} footnotes, {endnotes:,} endnotes and {comments:,} comments",
            file=str(path),
            **counts,
        )
        yield Finding("footnotes", "warning", message)


def _record(path: Path, section: list[Block]) -> Record:
    return Record(SourceLocation(str(path), section[0].number), {"text": "\n\n".join(x.text for x in section)})


def _blocks(path: Path) -> Iterator[Block]:
    """The paragraphs and tables that hold text."""
    styles = _part(path, "word/styles.xml", missing_ok=True)
    levels, lists = _heading_levels(styles), _list_styles(styles)
    body = _part(path, "word/document.xml").find(W + "body")
    for number, element in enumerate(_inside(body, W + "p", W + "tbl") if body is not None else (), 1):
        if element.tag == W + "tbl":
            text, level = _table(element), 0
        else:
            level = _level(element, levels)
            text = _text(element).strip()
            if text and level:
                text = "#" * min(level, MAX_LEVEL) + " " + " ".join(text.split())
            elif text and (indent := _list_indent(element, lists)) is not None:
                text = "  " * indent + "- " + text
        if text.strip():
            yield Block(number, text, level > 0)


def _inside(parent: Element, *tags: str) -> Iterator[Element]:
    """The elements with these tags, also those in content controls and other wrappers, but not one inside another."""
    for child in parent:
        if child.tag in tags:
            yield child
        elif child.tag not in NOT_TEXT:
            yield from _inside(child, *tags)


def _text(element: Element) -> str:
    if element.tag in NOT_TEXT:
        return ""
    if element.tag in (W + "t", MATH_TEXT):
        return element.text or ""
    if element.tag in SIGNS:
        return SIGNS[element.tag]
    inside = "".join(map(_text, element))
    return f"\n{inside}\n" if element.tag == W + "txbxContent" else inside + "\n" * (element.tag == W + "p")


def _table(table: Element) -> str:
    """The rows as lines; a merged cell is told once, and leaves the others empty."""
    rows = []
    for row in _inside(table, W + "tr"):
        cells: list[str] = []
        for cell in _inside(row, W + "tc"):
            properties = cell.find(W + "tcPr")
            merge = None if properties is None else properties.find(W + "vMerge")
            span = None if properties is None else properties.find(W + "gridSpan")
            continued = merge is not None and merge.get(W + "val", "continue") == "continue"
            cells.append("" if continued else " ".join(_text(cell).split()).replace("|", "\\|"))
            width = span.get(W + "val", "1") if span is not None else "1"
            cells += [""] * (min(int(width), 100) - 1 if width.isdecimal() else 0)
        rows.append(cells)
    if not any(cell for row in rows for cell in row):
        return ""
    width = max(map(len, rows))
    lines = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * width, *lines[1:]])


def _level(paragraph: Element, levels: dict[str, int]) -> int:
    """The level of a heading, from 1; 0 for other paragraphs."""
    properties = paragraph.find(W + "pPr")
    if properties is None:
        return 0
    outline, style = properties.find(W + "outlineLvl"), properties.find(W + "pStyle")
    if outline is not None:
        return _outline_level(outline)
    return 0 if style is None else levels.get(style.get(W + "val", ""), 0)


def _heading_levels(styles: Element) -> dict[str, int]:
    """The styles of headings -> their level."""
    own: dict[str, int] = {}
    parents: dict[str, str] = {}
    for style in styles.iter(W + "style"):
        key, name, parent = style.get(W + "styleId", ""), style.find(W + "name"), style.find(W + "basedOn")
        outline, called = style.find(f"{W}pPr/{W}outlineLvl"), "" if name is None else name.get(W + "val", "")
        if parent is not None:
            parents[key] = parent.get(W + "val", "")
        if match := HEADING.fullmatch(called.strip()):
            own[key] = int(match[1])
        elif called.strip().lower() in TITLES:
            own[key] = 1
        elif outline is not None:
            own[key] = _outline_level(outline)
    levels = dict(own)
    for key in parents:
        ancestor, steps = key, 0
        while ancestor not in own and ancestor in parents and steps < len(parents):
            ancestor, steps = parents[ancestor], steps + 1
        levels[key] = own.get(ancestor, 0)
    return levels


def _outline_level(outline: Element) -> int:
    """Word's levels are 0 to 8; 9 is the text."""
    value = outline.get(W + "val", "9")
    return int(value) + 1 if value.isdecimal() and int(value) < 9 else 0


def _list_styles(styles: Element) -> set[str]:
    """The styles of list items."""
    return {x.get(W + "styleId", "") for x in styles.iter(W + "style") if x.find(f"{W}pPr/{W}numPr") is not None}


def _list_indent(paragraph: Element, lists: set[str]) -> int | None:
    """How deep a list item is; None for other paragraphs."""
    numbering, style = paragraph.find(f"{W}pPr/{W}numPr"), paragraph.find(f"{W}pPr/{W}pStyle")
    if numbering is None:
        return 0 if style is not None and style.get(W + "val") in lists else None
    level = numbering.find(W + "ilvl")
    value = "0" if level is None else level.get(W + "val", "0")
    return min(int(value), 8) if value.isdecimal() else 0


def _part(path: Path, name: str, missing_ok: bool = False) -> Element:
    """A part of the document, as XML."""
    whole = read_file(path)
    refuse_large_parts(path, whole)
    try:
        with zipfile.ZipFile(BytesIO(whole)) as archive:
            if missing_ok and name not in archive.namelist():
                return Element("none")
            raw = archive.read(name)
        if b"<!DOCTYPE" in raw[:1000]:
            raise DataError("{path}: {part} declares entities, which no Word document does.", path=path, part=name)
        root = ElementTree.fromstring(raw.replace(STRICT, W[1:-1].encode()))
        if _depth(root) > MAX_DEPTH:
            raise DataError("{path}: {part} is nested too deeply.", path=path, part=name)
        return root
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, NotImplementedError, RuntimeError) as error:
        raise DataError("{path} is not a Word document that can be read: {error}", path=path, error=str(error)) from None


def _depth(root: Element) -> int:
    deepest, level = 0, [root]
    while level:
        deepest, level = deepest + 1, [child for element in level for child in element]
    return deepest
