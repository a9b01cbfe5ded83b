"""Load a model from a Run, a PEFT adapter or a base model, and use it: generate, predict, encode.

Several adapters can share one base model: each prompt, or each row of a batch, goes through the adapter it names.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weitiao.core import hardware
from weitiao.core.engine import Engine, Generation, Request, SamplingParams
from weitiao.core.errors import DataError, ModelError
from weitiao.core.example import SourceLocation, Turn
from weitiao.core.finding import Decision
from weitiao.core.generation import answer_requests, generate, new_engine, stream_answer
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.core.registry import create
from weitiao.core.trainable_model import TrainableModel
from weitiao.data.records import Record
from weitiao.model.adapters.adapter_pool import MAX_LORAS
from weitiao.model.generation.choose import choose_forward
from weitiao.pipeline.adapter_folder import write_adapter_folder
from weitiao.pipeline.adapter_registry import AdapterOpener, AdapterRegistry
from weitiao.pipeline.load import (
    BaseAssets,
    attach,
    load,
    load_stacked_base,
    open_base_assets,
    open_trained_assets,
    with_overlong,
)
from weitiao.pipeline.predict import InputRow, RowPredictor, predict_rows
from weitiao.pipeline.prompting import Messages, PromptIds, as_turns, encode_prompt
from weitiao.pipeline.trained import check_unchanged, read_trained
from weitiao.plan.compatibility import check_base


@dataclass
class Model:
    """A model to use, from a Run, a PEFT adapter or a base model."""

    model: TrainableModel
    """The handle that objectives use."""
    assets: BaseAssets
    """Tokenizer, chat template and processor."""
    objective: Objective
    recipe: Recipe | None = None
    """Of a Run."""
    adapters: dict[str, BaseAssets] = field(default_factory=dict)
    """Of several adapters on one base: a name -> the tokenizer and template it was trained with."""
    _registry: AdapterRegistry | None = None
    """Of a base model with adapters."""
    training_columns: tuple[str, ...] = ()
    """Of a Run: descriptions of the columns that its files had."""
    _engine: Engine | None = None
    """Kept for its cached prefixes; None: each call has a new one."""

    @property
    def torch_model(self) -> PreTrainedModel:
        """The transformers model, with the method attached."""
        assert isinstance(self.model.model, PreTrainedModel)
        return self.model.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.assets.tokenizer

    def for_task(self, task: str) -> "Model":
        """The same model for one task of a multi-task run.

        Raises:
            RecipeError: there is no such task, or none is named where there are several.
        """
        return replace(self, model=self.model.for_task(task), objective=self.objective.part(task))

    # -- generate -----------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: str | Messages | Sequence[str] | Sequence[Messages],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        sampling: SamplingParams | None = None,
        n: int = 1,
        adapter: str | Sequence[str] = "",
        stream: bool = False,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Any:
        """Answer a prompt or a list of prompts; a prompt is a string or a list of chat messages. A model trained on plain
        text continues a string.

        Args:
            temperature: 0 is greedy.
            sampling: all settings (top_p, top_k, stop, seed ...), in place of `max_new_tokens` and `temperature`.
            n: answers to each prompt.
            adapter: of several adapters, the one that answers, or one for each prompt; "" is the base model.
            stream: yield the answer to one prompt piece by piece; a reader who stops ends it.
            system: a system message before prompts that have none; default: that of the training rows, "": none.
            tools: that the assistant may call, as OpenAI writes them.

        Returns:
            A string, a list of strings (for a list of prompts), or an iterator of strings (with `stream`). With n > 1, a
            list of strings in place of each string.

        Raises:
            ModelError: the model was trained for predictions, not for generation.
            DataError: a message is not {role, content}.
        """
        self._refuse_without_generation()
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], Mapping))
        conversations: Sequence[Any] = [prompts] if single else prompts
        adapters = [adapter] * len(conversations) if isinstance(adapter, str) else list(adapter)
        params = sampling or SamplingParams(max_new_tokens, temperature)
        ids = [
            self.prompt(as_turns(x), name, system, list(tools), params.max_new_tokens)
            for x, name in zip(conversations, adapters)
        ]
        if stream:
            if not single or n > 1:
                raise DataError("stream: one answer to one prompt at a time; several were asked for.")
            return self._stream(ids[0], params, adapters[0])
        if self.assets.architecture.kind != "decoder":
            texts = [self.decode(x) for x in generate(self.model, ids, params.max_new_tokens)]
            texts = [[x] * n for x in texts] if n > 1 else texts
            return texts[0] if single else texts
        requests = [Request(x, params, name, i) for x, name in zip(ids, adapters) for i in range(n)]
        answers = [x.text.strip() for x in self.answer(requests)]
        grouped = answers if n == 1 else [answers[i : i + n] for i in range(0, len(answers), n)]
        return grouped[0] if single else grouped

    def answer(self, requests: Sequence[Request]) -> list[Generation]:
        """The finished answers to requests, with the log-probabilities that they ask for; of a decoder."""
        return answer_requests(self.model, requests, self._engine)

    @contextmanager
    def caching_prefixes(self) -> Iterator[None]:
        """Inside, a prompt that begins as an earlier one, with its answer, computes only the rest: for conversations.

        The model's weights must stay as they are.
        """
        before, self._engine = self._engine, new_engine(self.model) if self.assets.architecture.kind == "decoder" else None
        try:
            yield
        finally:
            self._engine = before

    def prompt(
        self,
        turns: Sequence[Turn],
        adapter: str = "",
        system: str | None = None,
        tools: Any = None,
        max_new_tokens: int = 256,
    ) -> PromptIds:
        """Token ids of a conversation up to where the assistant answers, in the adapter's own chat template; of plain text,
        the text.

        Args:
            system: a system message, if there is none; default: that of the training rows.
            tools: that the assistant may call.
            max_new_tokens: room for the answer, where exchanges of a long conversation are left out (`overlong`); the
                result's `dropped` tells which messages.

        Raises:
            DataError: it is not a prompt for this model.
        """
        assets = self.adapters.get(adapter, self.assets)
        return encode_prompt(assets, turns, system, tools, max_new_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        return self.assets.processor.decode(ids).strip()

    def _stream(self, prompt: list[int], params: SamplingParams, adapter: str) -> Iterator[str]:
        """The answer in pieces; the model stops where the reader does."""
        if self.assets.architecture.kind != "decoder":  # its beams are known only at the end
            yield self.decode(generate(self.model, [prompt], params.max_new_tokens)[0])
            return
        shown = 0
        for generation in stream_answer(self.model, Request(prompt, params, adapter), self._engine):
            text = generation.text if shown else generation.text.lstrip()
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)

    def _refuse_without_generation(self) -> None:
        if not self.objective.traits.generative:
            raise ModelError(
                "a model trained with objective {objective} does not generate text: use predict.",
                objective=self.objective.name,
            )

    # -- predict and encode -------------------------------------------------------------------------------------------

    def predict(self, rows: Iterable[Mapping[str, Any] | str] | str | Path, *, task: str = "") -> Iterator[dict[str, Any]]:
        """Each row with what is predicted of it, in order: {"text": ..., "predicted": "spam", "probabilities": {...}}.

        Args:
            rows: dicts, texts, or the path of a file in any format that a reader knows.
            task: of a multi-task run, which task.

        Raises:
            ModelError: the objective generates its answers.
            DataError: there is no such file, or no column to read.
        """
        return predict_rows(self, rows, task)

    def encode(self, texts: str | Sequence[str], *, task: str = "") -> np.ndarray:
        """Embeddings of length 1, fp32 [n, D] (of one text [D]), of a model trained with objective embedding.

        Raises:
            ModelError: it was trained with another objective.
            DataError: a text is empty.
        """
        predictor = RowPredictor.make(self, task) if not self.objective.traits.generative else None
        if predictor is None or predictor.loaded.objective.name != "embedding":
            raise ModelError(
                "encode needs a model trained with objective embedding; this one has objective {objective}.",
                objective=self.objective.part(task).name,
            )
        records = [Record(SourceLocation("texts", i), {"text": x}) for i, x in enumerate(_listed(texts), 1)]
        predictor.columns = {"text": "text"}
        encoded = predictor.encode(records, "texts")
        for x in encoded:
            if not isinstance(x, InputRow):
                raise DataError("{where}: {reason}", where=x.where, reason=x.reason)
        vectors = np.stack([x[0].numpy() for x in predictor.predict([x for x in encoded if isinstance(x, InputRow)])])
        return vectors[0] if isinstance(texts, str) else vectors

    # -- the adapter, or the adapters ---------------------------------------------------------------------------------

    def add_adapter(self, name: str, target: str | Path, *, on_demand: bool = False) -> None:
        """Add an adapter to a base model, or replace the one of this name; where that fails, all stays as it was.

        Safe from any thread: it waits for a forward pass that is running. Rows of other adapters are not touched; rows that
        are generated with a replaced one go on with the new one, so end them first.

        Args:
            target: a Run or PEFT adapter folder.
            on_demand: only list it: its weights are read when a prompt names it, and dropped when many others are used.

        Raises:
            ModelError: it was trained on another base, is more than a low-rank change of linear layers, or changes
                nothing; or this model is not a base model.
        """
        if self._registry is None:
            if self.recipe is not None or self.model.attachment.trainable:
                raise ModelError(
                    "adapters are added to a base model, and this model has one already: load its base, then add both."
                )
            self._registry = AdapterRegistry(AdapterOpener(str(self.assets.folder), self.assets), self.model)
            self.adapters = self._registry.assets
        self._registry.add(name, self._registry.opener.open(str(target)), on_demand)

    def remove_adapter(self, name: str) -> None:
        """Remove an adapter. End what is generated with it first: its rows would raise ModelError. As safe as add_adapter.

        Raises:
            ModelError: there is no such adapter.
        """
        if self._registry is None:
            raise ModelError("there is no adapter called {name!r}; this model has none.", name=name)
        self._registry.remove(name)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the trained weights as an adapter in PEFT's format.

        Raises:
            ModelError: nothing was trained, or PEFT has no format for the method or the head.
        """
        if self.recipe is None:
            raise ModelError("PEFT has no adapter format for this model.")
        reason = write_adapter_folder(self.model, self.assets, self.objective, self.recipe, Path(folder))
        if reason:
            raise ModelError("{reason}.", reason=reason)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the model is the base model.

        Raises:
            ModelError: the method changes the base weights themselves.
        """
        if self.model.attachment.set_enabled is None:
            raise ModelError("this method changes the base weights themselves: load the base model to compare.")
        before, self._engine = self._engine, None  # what it cached is of the tuned model
        try:
            with self.model.reference():
                yield
        finally:
            self._engine = before


def engine_decision(model: Model) -> Decision | None:
    """How a decoder generates, and why; None: it is no decoder."""
    return choose_forward(model.model)[1] if model.assets.architecture.kind == "decoder" else None


def _listed(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


# -- loading ----------------------------------------------------------------------------------------------------------


def open_model(target: str, precision: str = "", overlong: str = "auto") -> Model:
    """A Run folder, a PEFT adapter folder, or any base model.

    Args:
        precision: "": as the run was trained, or auto.
        overlong: what is done with conversations that are too long, as of `with_overlong`.

    Raises:
        ModelError, RunError: it is none of these, or the run has no result yet.
    """
    device, trained = hardware.device(), read_trained(target)
    dtype = hardware.precision(precision or (trained.precision if trained else "auto"))[0]
    if trained is None:
        assets = open_base_assets(target)
        decoder = "causal_lm" if assets.continues_text else "sft"
        objective = create(Objective, "seq2seq" if assets.architecture.kind == "encoder_decoder" else decoder)
        check_base(objective, Method.untouched(), assets.architecture)
        model = load(assets, Method.untouched(), objective, dtype, device)[0]
        return Model(model, with_overlong(assets, overlong), objective)
    assets = open_trained_assets(trained)
    check_unchanged(trained, assets.base_chain, assets.folder)
    model = load(assets, trained.method, trained.objective, dtype, device)[0]
    trained.load_weights(model)
    assets = with_overlong(assets, overlong)
    return Model(model, assets, trained.objective, trained.recipe, training_columns=trained.columns)


def open_many(target: str, adapters: Mapping[str, str], precision: str = "", overlong: str = "auto") -> Model:
    """Several adapters on one base model: each prompt, or each row of a batch, goes through the one it names.

    Args:
        target: their base model, as a recipe would name it.
        adapters: a name for each -> its Run or PEFT adapter folder. The weights of those after the first 32 are read when
            a prompt first names them.
        precision: "": as they were trained, where that is the same for all, or auto.
        overlong: what is done with conversations that are too long, as of `with_overlong`.

    Raises:
        ModelError: one has another base model, is not a low-rank change of linear layers, or changes nothing.
    """
    if not adapters:
        return open_model(target, precision, overlong)
    assets = with_overlong(open_base_assets(target), overlong)
    opener = AdapterOpener(target, assets, overlong)
    opened = {name: opener.open(folder) for name, folder in adapters.items()}
    first = next(iter(opened.values()))
    precisions = {x.trained.precision for x in opened.values()}
    dtype = hardware.precision(precision or (precisions.pop() if len(precisions) == 1 else "auto"))[0]
    base = load_stacked_base(
        assets.folder, assets.base_chain, Method.untouched(), dtype, hardware.device(), assets.processor
    )
    model = attach(base, Method.untouched(), first.trained.objective, first.assets.processor)
    registry = AdapterRegistry(opener, model, str(first.trained.folder))
    for i, (name, adapter) in enumerate(opened.items()):
        registry.add(name, adapter, on_demand=i >= MAX_LORAS)
    return Model(model, assets, first.trained.objective, adapters=registry.assets, _registry=registry)
