"""A component's file that fails is an error of one line, which names the file and the line."""

from pathlib import Path

import pytest

from weitiao.core import registry
from weitiao.core.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [("x = 1\nimport nothing_here\n", 2, "No module named 'nothing_here'"), ("x = (\n", 1, "SyntaxError")],
)
def test_failing_file_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, reason: str) -> None:
    folder = tmp_path / f"components_{line}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.FOLDERS, "broken_kind", folder.name)
    with pytest.raises(RecipeError, match=rf"broken\.py, line {line}, fails: .*{reason}"):
        registry.find("broken_kind", "broken")
