"""report.html of a cleaned folder: one page without scripts or anything from outside, in the language of who made it."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from weitiao.core.messages import Message, language
from weitiao.core.text_difference import difference
from weitiao.data.cleaning import RuleCounts

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}p.diff{white-space:pre-wrap;background:#f6f6f6;padding:.4rem .6rem;"
    "margin:.3rem 0;overflow-wrap:anywhere}del,ins{text-decoration:none}del{background:#fdd}ins{background:#dfd}"
    "small{color:#777}@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}p.diff{background:#222}"
    "del{background:#622}ins{background:#262}td,th{border-color:#444}}"
)
TAGS = {"same": "span", "removed": "del", "added": "ins"}
TITLE, ROWS, BYTES = Message("Cleaned data"), Message("rows"), Message("bytes")
NAMES = {
    "in": Message("in"),
    "accepted": Message("accepted"),
    "repaired": Message("repaired"),
    "quarantined": Message("quarantined"),
    "duplicate": Message("duplicate"),
    "blank": Message("blank lines"),
}


def cleaning_report(counts: Mapping[str, Any]) -> str:
    """The page.

    Args:
        counts: as counts.json has them.
    """
    parts = [
        f"<h1>{html.escape(str(TITLE))}</h1>",
        "".join(f"<p><small>{html.escape(x['file'])}</small></p>" for x in counts["files"][:20]),
        _table(counts),
        "<ul>" + "".join(f"<li>{html.escape(str(x))}</li>" for x in rule_lines(counts)) + "</ul>",
        *(_examples(rule, records) for rule, records in sorted(counts["examples"].items())),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(str(TITLE))}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="{language()}"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def rule_lines(counts: Mapping[str, Any]) -> Iterator[Message]:
    """What each rule did, a line each; of the counts as counts.json has them."""
    names = [x["name"] for x in counts["cleaners"]]
    return RuleCounts.from_json(counts["rules_rows"], counts["rules"]).lines(names)


def _table(counts: Mapping[str, Any]) -> str:
    rows, sizes = counts["rows"], counts["bytes"]
    cells = ([str(NAMES[key]), f"{rows[key]:,}" if key in rows else "", f"{sizes[key]:,}"] for key in NAMES)
    return f"<table>{_row(['', str(ROWS), str(BYTES)], 'th')}{''.join(_row(x, 'td') for x in cells)}</table>"


def _row(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(x)}</{tag}>" for x in cells) + "</tr>"


def _examples(rule: str, records: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"<h2>{html.escape(rule)}</h2>"]
    for x in records:
        position = Message("{file}, line {line}", file=x["file"], line=x["line"])
        if "before" in x:
            pieces = difference(x["before"], x["after"])
            text = "".join(f"<{TAGS[kind]}>{html.escape(piece)}</{TAGS[kind]}>" for kind, piece in pieces)
        else:
            text = html.escape(x.get("left_out", x.get("hint", "")))
        parts.append(
            f"<small>{html.escape(str(position))} {html.escape(x.get('field', ''))}</small><p class=diff>{text}</p>"
        )
    return "".join(parts)
