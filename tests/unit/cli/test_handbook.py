"""cli/handbook.json is what the code says. `pytest --record` rewrites it."""

import subprocess
import sys
from pathlib import Path

import pytest

from weitiao.cli import handbook
from weitiao.cli.explain import explain


def test_handbook_is_up_to_date(request: pytest.FixtureRequest) -> None:
    text = handbook.as_text(handbook.build())
    if request.config.getoption("--record"):
        handbook.FILE.write_text(text, encoding="utf-8")
    assert handbook.FILE.read_text(encoding="utf-8") == text, "run: python -m weitiao.cli.handbook"


def test_component_newer_than_the_handbook_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    book = handbook.read()
    monkeypatch.setattr(handbook, "read", lambda: {**book, "parts": {}})
    assert explain("lora").row_count > 5


@pytest.mark.parametrize("command", [["--help"], ["schema"], ["explain"], ["explain", "lora"], ["runs"]])
def test_commands_without_torch(command: list[str], tmp_path: Path) -> None:
    """They answer in a moment, because they import neither torch nor transformers."""
    code = (
        "import sys\n"
        "from weitiao.cli.app import app\n"
        f"sys.argv[1:] = {command!r}\n"
        "try:\n"
        "    app()\n"
        "except SystemExit as done:\n"
        "    assert not done.code, done.code\n"
        "print('imported:', [x for x in ('torch', 'transformers', 'numpy') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] in ("imported: []", "imported: ['numpy']")
