"""What tests share: a closed network, a cache of their own, and tiny models with a real tokenizer."""

import atexit
import copy
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

WORDS = (
    "the quick brown fox jumps over the lazy dog and asks what time it is in paris while seven wizards quietly mix "
    "boxes of liquid 你好 世界 今天 天气 怎么样 "
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write the golden losses anew")
    parser.addoption("--full", action="store_true", help="proofs as often as the claims say; about an hour")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `full` are for --full alone."""
    if config.getoption("--full"):
        return
    left = [x for x in items if x.get_closest_marker("full")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [x for x in items if not x.get_closest_marker("full")]


@pytest.fixture(autouse=True)
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection but to this machine itself fails the test."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family == socket.AF_UNIX or host in ("127.0.0.1", "::1", "localhost"):
            return real(self, address)  # pyright: ignore
        raise AssertionError(f"a test tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are fastest on one thread, and do not suffer when the machine is busy; `real` ones use all cores."""
    real = request.node.get_closest_marker("real") is not None
    torch.set_num_threads(os.cpu_count() or 1 if real else 1)
    if not real:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache folder of the test's own; tests marked `real` use the user's, where the bundled model lies."""
    if request.node.get_closest_marker("real") is None:
        home = tmp_path_factory.mktemp("home")
        kernels = tmp_path_factory.getbasetemp() / "kernels"  # compiled once, for all
        kernels.mkdir(exist_ok=True)
        (home / "kernels").symlink_to(kernels)
        monkeypatch.setenv("WEITIAO_HOME", str(home))


def make_tokenizer(template: str | None = CHATML) -> object:
    """A byte-level BPE tokenizer trained here, on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([WORDS] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", bos_token="<|endoftext|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = template
    return tokenizer


def make_wordpieces() -> object:
    """A WordPiece tokenizer as BERT's: [CLS] a text [SEP]; listed, for training finds other pieces each time."""
    from transformers import BertTokenizer

    signs = [*"abcdefghijklmnopqrstuvwxyz0123456789", *sorted({x for x in WORDS if x > "\u4e00"})]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *("##" + x for x in signs), *sorted(set(WORDS.split()))]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))})


@cache
def old_run(base: Path | str = "llama") -> str:
    """The folder of a finished Run that learnt something from a base: a tiny one of a family, or the one in a folder."""
    from rich.console import Console

    from weitiao.core.recipe_file import make_recipe
    from weitiao.core.reporter import Reporter
    from weitiao.pipeline.train import train

    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    folder = base if isinstance(base, Path) else save_model(place / base, base)
    chats, classes = chat_rows(8, answers=("the lazy dog",)), [{"text": f"fox {i}", "label": i % 2} for i in range(8)]
    reads = base in FAMILIES and base not in DECODERS
    encoder_decoder = base in HALVES
    rewritten = [{"source": f"fox {i}", "target": "the lazy dog"} for i in range(8)]
    rows = write_jsonl(place / "old.jsonl", rewritten if encoder_decoder else classes if reads else chats)
    shape = {"steps": 3, "batch_size": 8, "learning_rate": 3e-2, "precision": "fp32", "evaluate_every": 0}
    plain = {"base": str(folder), "data": str(rows), "validation": 0, "method": {"name": "lora", "rank": 2}, "train": shape}
    plain["objective"] = "seq2seq" if encoder_decoder else "classification" if reads else "sft"
    recipe = make_recipe({**plain, "evaluate": {"metrics": ["loss"], "samples": 0}, "out": str(place / "run")})
    with torch.random.fork_rng():
        return str(train(recipe, Reporter(Console(quiet=True))).folder)


TRIED = {"bitfit": {"add_missing": True}, "peft": {"config": "LoHa"}}  # what a method is asked for on a tiny Llama


VARIANTS = {"lora_pissa": ("lora", {"init": "pissa"}), "qlora_8bit": ("qlora", {"bits": 8})}  # laws hold these too


TOLD = {  # what an objective must be told, or is told so that tests are quick
    "multi_task": {"tasks": {"kind": "classification", "number": "regression"}},
    "seq2seq": {"longest": 8},
}


def aim(objective: str) -> Any:
    """An objective with its defaults, and with what it must be told."""
    from weitiao.core.registry import find

    return find("objective", objective)(**TOLD.get(objective, {}))


def asked(method: str, base: Path | str = "llama") -> dict[str, Any]:
    """What a method must be told on a tiny model."""
    return {"old": old_run(base)} if method == "f_learning" else TRIED.get(method, {})


def tried(method: str, base: Path | str = "llama", **more: Any) -> str | dict[str, Any]:
    """A method, or a variant of one, as tests write it into a recipe."""
    name, variant = VARIANTS.get(method, (method, {}))
    settings = {**asked(method, base), **variant, **more}
    return {"name": name, **settings} if settings else name


DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma")
ENCODERS = {"distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}}  # which calls things otherwise
HALVES = {  # an encoder and a decoder
    "t5": {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0},
    "bart": {
        "vocab_size": 320, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.0,
        "max_position_embeddings": 256,
    },
}  # fmt: skip
FAMILIES = (*DECODERS, "bert")
WITH_WINDOWS = ("gemma2", "gemma3_text")  # decoders that few tests need


def make_model(family: str = "llama", seed: int = 0) -> torch.nn.Module:
    """A tiny random model of a family, in fp32: a causal language model, or an encoder without a head."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    small = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 2}
    if family == "gpt2":
        config = AutoConfig.for_model("gpt2", vocab_size=320, n_embd=32, n_layer=3, n_head=4, n_positions=256, **ends)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    elif family in HALVES:
        config = AutoConfig.for_model(family, **HALVES[family], **ends, decoder_start_token_id=0)
    elif family not in (*DECODERS, *WITH_WINDOWS):
        plain = {"num_attention_heads": 4, "max_position_embeddings": 256}
        config = AutoConfig.for_model(family, **small, **plain, **ENCODERS.get(family, {}))
    else:
        windows = {"sliding_window": 4, "query_pre_attn_scalar": 8} if family in WITH_WINDOWS else {}
        config = AutoConfig.for_model(family, **small, **heads, **ends, **windows)
    torch.manual_seed(seed)
    writes = AutoModelForSeq2SeqLM if family in HALVES else AutoModelForCausalLM
    model = (writes if family in (*DECODERS, *WITH_WINDOWS, *HALVES) else AutoModel).from_config(
        config, dtype=torch.float32
    )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # pyright: ignore
    with torch.no_grad():
        for weight in model.parameters():  # away from the zeros of a fresh model, so that every path matters
            weight.add_(torch.randn_like(weight) * 0.05)
    return model.eval()


def save_model(folder: Path, family: str = "llama", template: str | None = CHATML) -> Path:
    """A tiny model and its tokenizer as a folder."""
    make_model(family).save_pretrained(folder)
    reads = family not in (*DECODERS, *WITH_WINDOWS, *HALVES)
    tokenizer = make_wordpieces() if reads else make_tokenizer(template)
    tokenizer.save_pretrained(folder)  # pyright: ignore
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with a chat template."""
    return save_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a family."""
    place = tmp_path_factory.mktemp("families")
    return {family: save_model(place / family, family) for family in FAMILIES}


def chat_rows(
    count: int, answers: tuple[str, ...] = ("paris", "seven boxes", "the lazy dog and the quick fox")
) -> list[dict]:
    """Rows of unequal length."""
    asks = ("what time is it", "the fox", "quietly mix liquid and ask the wizards what is in the box", "你好 世界")
    return [
        {
            "messages": [
                {"role": "user", "content": f"{asks[i % len(asks)]} {i}"},
                {"role": "assistant", "content": answers[i % len(answers)]},
            ]
        }
        for i in range(count)
    ]


def rated_rows(count: int, two: bool = False) -> list[dict]:
    """Texts of unequal length, whose rating is decided by how often one word is there; or pairs of texts."""
    rows = [
        {"text": f"{'the fox ' * (i % 5)}and the {'lazy ' * (i % 3)}dog {i}", "score": i % 5 + 0.5} for i in range(count)
    ]
    return [{**row, "other": f"quick {'dog ' * (i % 4)}"} for i, row in enumerate(rows)] if two else rows


def question_rows(count: int) -> list[dict]:
    """Questions whose answer stands behind one word of the text; every fourth text holds none."""
    rows = []
    for i in range(count):
        answer = ("the lazy dog", "paris", "seven wizards")[i % 3]
        before = "the quick fox " * (i % 4) + "asks "
        text = f"{before}{answer if i % 4 else 'liquid'} and {'boxes ' * (i % 5)}time {i}"
        answers = {"text": [answer], "answer_start": [len(before)]} if i % 4 else {"text": [], "answer_start": []}
        rows.append({"question": "what asks", "context": text, "answers": answers})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def wait_for(file: Path, child: subprocess.Popen, seconds: float = 300.0) -> None:
    """Until the file is there.

    Raises:
        AssertionError: the child has ended, or the seconds have.
    """
    until = time.monotonic() + seconds
    while not file.exists():
        assert child.poll() is None and time.monotonic() < until, f"{file.name} did not come"
        time.sleep(0.05)


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "chat.jsonl", chat_rows(24))


@pytest.fixture
def plain_recipe(tiny: Path, chat_file: Path, tmp_path: Path) -> dict:
    """A recipe as plain values, quick to run."""
    return {
        "base": str(tiny),
        "data": [{"path": str(chat_file)}],
        "validation": 0.2,
        "method": {"name": "lora", "rank": 4, "alpha": 8},
        "objective": "sft",
        "train": {"steps": 4, "batch_size": 4, "precision": "fp32", "learning_rate": 1e-2, "evaluate_every": 2},
        "evaluate": {"metrics": ["loss"], "samples": 1, "max_new_tokens": 4},
        "out": str(tmp_path / "run"),
    }


@pytest.fixture
def recipe_file(plain_recipe: dict, tmp_path: Path) -> Any:
    """recipe_file(**changes) -> the file of a one-step recipe; a change that is a dict is laid over the old one."""

    from unit.command import write_recipe

    def make(**changes: Any) -> Path:
        plain = dict(plain_recipe, train={**plain_recipe["train"], "steps": 1})
        plain["evaluate"] = {"metrics": ["loss"], "samples": 0, "max_new_tokens": 2}
        for key, value in changes.items():
            plain[key] = {**plain[key], **value} if isinstance(plain.get(key), dict) and isinstance(value, dict) else value
        return write_recipe(tmp_path, plain)

    return make


@pytest.fixture
def quick(plain_recipe: dict):
    """quick(method={...}, **changes) -> the finished Run of a tiny training."""
    from rich.console import Console

    from weitiao.core.recipe_file import make_recipe
    from weitiao.core.reporter import Reporter
    from weitiao.pipeline.train import train

    def run(again: bool = False, **changes: object):
        plain = copy.deepcopy(plain_recipe)
        for key, value in changes.items():
            laid_over = isinstance(value, dict) and isinstance(plain.get(key), dict)
            laid_over = laid_over and value.get("name", "lora") == "lora"  # pyright: ignore
            plain[key] = {**plain[key], **value} if laid_over else value  # pyright: ignore
        return train(make_recipe(plain), Reporter(Console(quiet=True)), again=again)

    return run
