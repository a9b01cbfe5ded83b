"""The READMEs are true: their commands run, their recipe is a recipe, their files exist, both say the same figures."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.rows import chat_rows, write_jsonl
from weitiao.core.recipe_file import make_recipe

ROOT = Path(__file__).parents[2]
READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")}


def blocks(text: str, language: str) -> list[str]:
    every = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [words for kind, words in every if kind == language]


def commands(text: str) -> list[str]:
    """Every `weitiao` command of the bash blocks, without its remark."""
    lines = [line.split("  #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if line.startswith(".venv/bin/weitiao")]


def test_same_commands_in_both_languages() -> None:
    english, chinese = ([shlex.split(c)[:3] for c in commands(text)] for text in READMES.values())
    assert english == chinese


@pytest.mark.parametrize("name", ["README.md"])
def test_readme_commands_run(name: str, tiny_llama: Path, recipe_dict: dict, tmp_path: Path) -> None:
    """In their order, in a folder of their own, on tiny weights and rows instead of the real ones."""
    write_jsonl(tmp_path / "data.jsonl", chat_rows(24))
    quick = {**recipe_dict, "train": {"steps": 2, "batch_size": 4, "precision": "fp32"}, "data": "data.jsonl"}
    for out, file in (("runs/quickstart", "quickstart.yaml"), ("runs/support", "support.yaml")):
        (tmp_path / file).write_text(yaml.safe_dump({**quick, "out": out}))
    found = commands(READMES[name])
    assert len(found) >= 9 and {shlex.split(c)[1] for c in found} >= {
        "train",
        "chat",
        "evaluate",
        "merge",
        "generate",
        "runs",
        "explain",
    }
    weitiao = [sys.executable, "-m", "weitiao"]
    assert subprocess.run([*weitiao, "train", "quickstart.yaml"], cwd=tmp_path, capture_output=True).returncode == 0
    for command in found:
        words = shlex.split(command)[1:]
        done = subprocess.run([*weitiao, *words], cwd=tmp_path, capture_output=True, text=True, input="hello\n\n")
        finished_already = "--resume" in words and "is finished already" in done.stderr
        assert done.returncode == 0 or finished_already, f"{command}: {done.stderr[-500:]}"
    assert (tmp_path / "runs" / "quickstart-merged" / "model.safetensors").exists()
    assert (tmp_path / "runs" / "wider" / "report.html").exists()


@pytest.mark.parametrize("name", READMES)
def test_readme_recipe_is_valid(name: str) -> None:
    (text,) = blocks(READMES[name], "yaml")
    assert make_recipe(yaml.safe_load(text)).method.name == "lora"


@pytest.mark.parametrize("name", READMES)
def test_readme_links_exist(name: str) -> None:
    links = [x for x in re.findall(r"\]\(([^)]+)\)", READMES[name]) if not x.startswith("http")]
    assert len(links) > 8
    assert not [x for x in links if not (ROOT / x).exists()]


def test_readme_tree_matches_source() -> None:
    """Every file and folder that the English tree names is there, and every file of the source is named."""
    (tree,) = [block for block in blocks(READMES["README.md"], "") if "pipeline.py" in block]
    named = set(re.findall(r"\b([a-z_]+\.py)\b", tree))
    there = {p.name for p in (ROOT / "src" / "weitiao").rglob("*.py") if not p.name.startswith("__")}
    kinds = ("readers", "mappings", "blocks", "methods", "optimizers", "clips", "steps", "metrics", "objective",
             "regularizers")  # fmt: skip
    parts = {p.name for folder in kinds
             for p in (ROOT / "src" / "weitiao").rglob(f"{folder}/*.py")}  # fmt: skip
    assert named - {"test_shape_of_code.py"} <= there
    assert there - parts <= named, f"not in the tree: {sorted(there - parts - named)}"
    for folder in re.findall(r"\b([a-z_]+)/ ", tree):
        assert list(ROOT.rglob(f"{folder}/")), folder


def test_same_figures_in_both_languages() -> None:
    def figures(text: str) -> list[str]:
        return re.findall(r"\d+\.\d %", text.split("figures: begin")[1].split("figures: end")[0])

    english, chinese = (figures(text) for text in READMES.values())
    assert english == chinese and len(english) >= 12
