"""CONTRIBUTING's examples work as they are printed: a method and an objective, trained together, explained and merged."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "CONTRIBUTING.zh.md")}
PACKAGES = ("weitiao.model.methods", "weitiao.objective.objectives")
BOOTSTRAP = """
import importlib, sys
folder = sys.argv.pop(1)
for name in {packages}:
    importlib.import_module(name).__path__.append(f"{{folder}}/src/{{name.replace('.', '/')}}")
from weitiao.cli.app import main
main()
"""


def examples(page: str) -> dict[str, str]:
    """Path -> source of each code block that begins with a path."""
    blocks = re.findall(r"^```python\n# (src/\S+\.py)\n(.*?)^```$", PAGES[page], re.S | re.M)
    return {path: source for path, source in blocks}


def test_same_examples_in_both_languages() -> None:
    assert examples("CONTRIBUTING.md") == examples("CONTRIBUTING.zh.md") and len(examples("CONTRIBUTING.md")) == 2


@pytest.mark.parametrize("name", PAGES)
def test_contributing_links_exist(name: str) -> None:
    links = [x for x in re.findall(r"\]\(([^)]+)\)", PAGES[name]) if not x.startswith("http")]
    assert len(links) > 8 and not [x for x in links if not (ROOT / x).exists()]


def test_example_method_and_objective_train(recipe_file: Any, tmp_path: Path) -> None:
    """Copied into a folder that is part of the packages, without any other change."""
    for path, source in examples("CONTRIBUTING.md").items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(source, encoding="utf-8")

    def weitiao(*arguments: object) -> str:
        command = [sys.executable, "-c", BOOTSTRAP.format(packages=PACKAGES), str(tmp_path), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "biases" in weitiao("explain", "attention_only")
    recipe = recipe_file(objective="instruction_modeling", train={"steps": 6})
    weitiao("train", recipe, "method=attention_only", "--quiet")
    weitiao("merge", tmp_path / "run", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()
