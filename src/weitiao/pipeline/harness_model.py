"""weitiao's models inside lm-evaluation-harness (extra: weitiao[lm-eval]).

    python -m weitiao.cli.lm_eval --model weitiao --model_args target=runs/support --tasks arc_easy
    register_model(); lm_eval.simple_evaluate(model="weitiao", model_args="target=runs/support", tasks=["arc_easy"])

What the harness asks for, log-probabilities of continuations and greedy answers, is computed as our exams are.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from weitiao.core.engine import SamplingParams
from weitiao.core.errors import DataError, ModelError
from weitiao.core.generation import generate
from weitiao.core.hardware import needs
from weitiao.core.option_scores import score_options
from weitiao.evaluate.examination.continuations import Prompt, encode_prompt, encode_text
from weitiao.pipeline.inference import Model, open_model
from weitiao.plan.compatibility import check_decoder

NAME = "weitiao"


def register_model() -> type:
    """The class `weitiao`, registered with the harness.

    Raises:
        RecipeError: the harness is not installed.
    """
    needs("lm_eval", "lm-eval", "lm-evaluation-harness")
    base_class: Any = import_module("lm_eval.api.model").LM
    registry: Any = import_module("lm_eval.api.registry").model_registry

    class Weitiao(base_class):
        """A Run, a PEFT adapter or a base model: target=FOLDER, precision=fp32."""

        def __init__(self, target: str, precision: str = "", max_length: int | None = None, **_: Any) -> None:
            super().__init__()
            self.loaded = open_model(target, precision)
            check_decoder(self.loaded.assets.architecture)
            self.max_length = max_length or self.loaded.assets.max_length

        @property
        def tokenizer_name(self) -> str:
            return self.loaded.assets.identity

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            tokenizer: Any = self.loaded.tokenizer
            return tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return loglikelihoods(self.loaded, [x.args for x in requests], self.max_length)

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            texts = [x.args[0] for x in requests]
            return [x[0] for x in loglikelihoods(self.loaded, [("", text) for text in texts], self.max_length)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return [answer_until(self.loaded, *x.args) for x in requests]

    if NAME not in registry:
        registry.register(NAME)(Weitiao)
    return Weitiao


def loglikelihoods(
    loaded: Model, pairs: Sequence[tuple[str, str]], max_length: int | None = None
) -> list[tuple[float, bool]]:
    """(log-probability of the continuation, whether it is greedy) of each (context, continuation).

    Continuations of one context share it.

    Raises:
        DataError: one is longer than the model's context.
    """
    places: dict[str, list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        places.setdefault(context, []).append(i)
    groups = list(places.items())
    prompts = [encode_prompt(loaded.assets.processor, x, [pairs[i][1] for i in indices]) for x, indices in groups]
    limit = max_length and max_length - len(loaded.model.attachment.virtual_tokens())
    prompts = [x if not limit or x.length <= limit else _shortened(x, limit) for x in prompts]
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    scored = score_options(loaded.model, [x.ids for x in prompts], [x.continuations for x in prompts])
    for (_, indices), prompt, scores in zip(groups, prompts, scored):
        for i, continuation, logprob in zip(indices, prompt.continuations, scores.log_probs):
            results[i] = logprob, scores.is_greedy(continuation)
    return results


def _shortened(prompt: Prompt, limit: int) -> Prompt:
    """Without its first tokens, as the harness does."""
    longest = prompt.length - len(prompt.ids)
    if longest >= limit:
        raise DataError(
            "a continuation of {n:,} tokens is longer than the model's context ({limit:,}).", n=longest, limit=limit
        )
    return Prompt(prompt.ids[longest - limit :], prompt.continuations)


def answer_until(loaded: Model, context: str, settings: dict[str, Any]) -> str:
    """A greedy answer, cut before the first of the texts in `until`.

    Raises:
        ModelError: the harness asks for samples.
    """
    if settings.get("do_sample") and settings.get("temperature", 0):
        raise ModelError("weitiao answers the harness greedily: set do_sample: false.")
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(x for x in until if x)
    room = int(settings.get("max_gen_toks", 256))
    ids = encode_text(loaded.assets.processor, context)
    if loaded.assets.max_length is not None:
        ids = ids[-max(1, loaded.assets.max_length - room) :]
    (answer,) = generate(loaded.model, [ids], room, SamplingParams(max_new_tokens=room, stop=stop))
    text = loaded.assets.processor.decode(answer)
    return min((text.split(x)[0] for x in stop), key=len, default=text)
