"""The READMEs are true: their commands run, their recipe is valid, their files exist, both have the same figures."""

import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from support.processes import ForkServer
from support.rows import chat_rows, write_jsonl
from weitiao.core.recipe import make_recipe

ROOT = Path(__file__).parents[2]
READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")}


def blocks(text: str, language: str) -> list[str]:
    return [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if kind == language]


def commands(text: str) -> list[str]:
    """Every `weitiao` command of the bash blocks, without its comment."""
    lines = [line.split("  #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if line.startswith(".venv/bin/weitiao")]


def test_same_commands_in_both_languages() -> None:
    english, chinese = ([shlex.split(c)[:3] for c in commands(text)] for text in READMES.values())
    assert english == chinese


def served(fork_server: ForkServer, arguments: list[str], folder: Path) -> int:
    """The exit code of a server that is ended once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child, end = fork_server.start(*arguments, "--port", str(port), cwd=folder), time.monotonic() + 120
    while time.monotonic() < end and child.process.exitcode is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                assert answer.status == 200
                break
        except OSError:
            time.sleep(0.2)
    child.send(signal.SIGTERM)
    return child.wait()


@pytest.mark.parametrize("name", ["README.md"])
def test_readme_commands_run(name: str, fork_server: ForkServer, recipe_dict: dict, tmp_path: Path) -> None:
    """In order, in a new folder, with a tiny model and tiny data instead of the real ones."""
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "support.jsonl", chat_rows(24))
    quick = {**recipe_dict, "train": {"steps": 2, "batch_size": 4, "precision": "fp32"}, "data": "data/support.jsonl"}
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump({**quick, "out": "runs/quickstart"}))
    lines = commands(READMES[name])
    assert len(lines) >= 9 and {shlex.split(c)[1] for c in lines} >= {
        "train",
        "chat",
        "evaluate",
        "merge",
        "generate",
        "runs",
        "explain",
    }
    fork_server.run("train", "quickstart.yaml", cwd=tmp_path)
    for command in lines:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "serve":
            assert served(fork_server, arguments, tmp_path) == 0
            continue
        child = fork_server.start(*arguments, cwd=tmp_path, stdin="hello\n\n")
        code = child.wait(600)
        finished_already = "--resume" in arguments and "finished already" in child.output
        assert code == 0 or finished_already, f"{command}: {child.output[-500:]}"
        if arguments[0] == "init":  # its recipe has the real base: go on with a tiny one
            (tmp_path / "support.yaml").write_text(yaml.safe_dump({**quick, "out": "runs/support"}))
    assert (tmp_path / "runs" / "quickstart-merged" / "model.safetensors").exists()
    assert (tmp_path / "runs" / "wider" / "report.html").exists()


def test_readme_python_runs(recipe_dict: dict, tmp_path: Path) -> None:
    snippets = [blocks(text, "python") for text in READMES.values()]
    assert snippets[0] == snippets[1] and len(snippets[0]) == 1
    plain = {**recipe_dict, "train": {"steps": 2, "batch_size": 4, "precision": "fp32"}, "out": "runs/support"}
    (tmp_path / "support.yaml").write_text(yaml.safe_dump(plain))
    done = subprocess.run([sys.executable, "-c", snippets[0][0]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    assert (tmp_path / "runs" / "support" / "report.html").exists()


@pytest.mark.parametrize("name", READMES)
def test_readme_recipe_is_valid(name: str) -> None:
    (text,) = blocks(READMES[name], "yaml")
    assert make_recipe(yaml.safe_load(text)).method.name == "lora"


@pytest.mark.parametrize("name", READMES)
def test_readme_links_exist(name: str) -> None:
    links = [x for x in re.findall(r"\]\(([^)]+)\)", READMES[name]) if not x.startswith("http")]
    assert len(links) > 8
    assert not [x for x in links if not (ROOT / x).exists()]


@pytest.mark.parametrize("name", READMES)
def test_readme_tree_matches_source(name: str) -> None:
    """Every folder that the tree names exists, and every folder of the source down to two levels is named."""
    (tree,) = [block for block in blocks(READMES[name], "") if block.startswith("src/weitiao/")]
    named: dict[str, list[str]] = {}
    for line in tree.splitlines():
        if not (folders := re.findall(r"(?<![<\w/])([a-z_]+)/", line.split("<")[0])):
            continue  # a file
        inside = line.startswith("  ")
        named |= {f"src/weitiao/{folder}": [] for folder in folders[: 4 if line.startswith("  cli/") else 1] if inside}
        if inside and not line.startswith("  cli/"):
            named[f"src/weitiao/{folders[0]}"] = folders[1:]
        elif not inside and folders[0] != "src":
            named[folders[0]] = folders[1:]
    assert not [path for path, inner in named.items() for x in ("", *inner) if not (ROOT / path / x).is_dir()]
    source = ROOT / "src" / "weitiao"
    assert {f"src/weitiao/{x}" for x in subfolders(source)} == {x for x in named if x.startswith("src/")}
    for path, inner in named.items():
        if path.startswith("src/") and inner:
            assert set(subfolders(ROOT / path)) == set(inner), path


def subfolders(folder: Path) -> list[str]:
    return [x.name for x in folder.iterdir() if x.is_dir() and x.name != "__pycache__"]


@pytest.mark.parametrize("name", READMES)
def test_readme_has_at_most_900_words(name: str) -> None:
    """Link targets are not counted; a Chinese word has 1.6 characters on average."""
    text = re.sub(r"\]\([^)]*\)", "]", READMES[name])
    assert len(re.findall(r"[A-Za-z][A-Za-z'-]*", text)) + len(re.findall("[\u4e00-\u9fff]", text)) / 1.6 <= 900


def test_same_figures_in_both_languages() -> None:
    def figures(text: str) -> list[str]:
        return re.findall(r"\d+\.\d", text.split("figures: begin")[1].split("figures: end")[0])

    english, chinese = (figures(text) for text in READMES.values())
    assert english == chinese and len(english) == 18
