"""The figures of the robustness tests in docs/proofs.json, and their tables in the docs."""

import json
from collections.abc import Callable
from pathlib import Path

RECORD = Path(__file__).parents[2] / "docs" / "proofs.json"
PAGES = {"proofs.md": "what|asked|measured|n|on", "proofs.zh.md": "内容|要求|实测|n|机器"}
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"
Figure = Callable[[str, object, object, int], None]


def write_pages() -> None:
    """Writes the table of docs/proofs.json into both pages of docs, between their markers."""
    figures = json.loads(RECORD.read_text(encoding="utf-8"))
    chinese = json.loads(RECORD.with_name("proofs_zh.json").read_text(encoding="utf-8"))
    rows = [
        f"| {name} | {x['asked']} | {x['measured']} | {x['n']:,} | {x['cpu']}, {x['cores']} cores, {x['date']} |"
        for name, x in figures.items()
    ]
    for name, head in PAGES.items():
        page = RECORD.with_name(name)
        text = page.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        titles = f"| {' | '.join(head.split('|'))} |\n|---|---|---|---|---|\n"
        body = "\n".join(_translated(row, chinese) if name.endswith("zh.md") else row for row in rows)
        page.write_text(f"{before}{BEGIN}{titles}{body}\n{END}{after}", encoding="utf-8")


def _translated(row: str, phrases: dict[str, str]) -> str:
    """A row with every known phrase in Chinese, the longest first."""
    for phrase in sorted(phrases, key=len, reverse=True):
        row = row.replace(phrase, phrases[phrase])
    return row
