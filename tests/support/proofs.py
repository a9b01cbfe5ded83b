"""The figures of the robustness tests in docs/proofs.json, and their tables in the docs."""

import json
from collections.abc import Callable
from pathlib import Path

RECORD = Path(__file__).parents[2] / "docs" / "proofs.json"
PAGES = {"proofs.md": "what|asked|measured|n|on", "proofs.zh.md": "内容|要求|实测|n|机器"}
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"
Figure = Callable[[str, object, object, int], None]


def write_pages() -> None:
    """The table of docs/proofs.json into both pages of docs, between their marks."""
    known = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = [
        f"| {name} | {x['asked']} | {x['measured']} | {x['n']:,} | {x['cpu']}, {x['cores']} cores, {x['date']} |"
        for name, x in known.items()
    ]
    for name, head in PAGES.items():
        page = RECORD.with_name(name)
        text = page.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        titles = f"| {' | '.join(head.split('|'))} |\n|---|---|---|---|---|\n"
        page.write_text(f"{before}{BEGIN}{titles}{chr(10).join(rows)}\n{END}{after}", encoding="utf-8")
