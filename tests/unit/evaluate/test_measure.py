"""Measuring: choices equal brute force, losses equal plain cross-entropy, and nothing of the run is changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from weitiao.core import generation, option_scores
from weitiao.core.batch import IGNORE, Row, pack
from weitiao.core.errors import RecipeError
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Chat, Text, Turn
from weitiao.core.option_scores import OptionScores, score_options
from weitiao.evaluate.choices import answer_ids, choose
from weitiao.evaluate.measure import default_metrics, generate_answers, measure
from weitiao.objective.objectives.sft import SFT

ANSWERS = ("paris", "seven boxes", "the lazy dog", "the lazy dog and the fox", "你好")


def chats(count: int = 15, system: str = "ask the wizards") -> list[Chat]:
    words = ("what time is it", "the fox", "mix liquid and ask what is in the box")
    return [
        Chat((Turn("system", system), Turn("user", f"{words[i % 3]} {i}"), Turn("assistant", ANSWERS[i % 5])))
        for i in range(count)
    ]


def eval_set(model: Any, examples: list[Chat]) -> EvalSet:
    rows = [row for x in examples for row in SFT().rows(x, model.processor)]
    return EvalSet(examples, lambda: [pack(rows[:4]), pack(rows[4:])], examples.__getitem__)


@pytest.fixture
def model(open_model: Any, perturb_weights: Any) -> Any:
    return perturb_weights(open_model())


@torch.no_grad()
def brute_force(model: Any, chat: Chat, answer: str) -> float:
    """log p(answer and stop | prompt), from a forward pass over the whole sequence."""
    prompt = model.processor.prompt(chat.prompt)
    whole = [*prompt, *model.processor.tokenizer(answer, add_special_tokens=False).input_ids, model.processor.stop_ids[0]]
    logits = model.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0].float().log_softmax(-1)
    return sum(float(logits[t - 1, whole[t]]) for t in range(len(prompt), len(whole)))


@pytest.mark.parametrize("answers", [ANSWERS, ("fox", "the", "mix", "qui", "par", "tim", "sks", "eve", "do", "ox", "ju")])
def test_option_choice_equals_brute_force(model: Any, answers: tuple[str, ...]) -> None:
    with torch.no_grad():  # a tiny model hardly attends to earlier tokens: amplify what it learned
        for weight in model.trainable().values():
            weight.mul_(6)
    rows = chats(30)
    wanted = [max(answers, key=lambda a: brute_force(model, x, a)) for x in rows]
    assert answers == ANSWERS or len(set(wanted)) > 1, "the model chooses the same for all"
    assert [answers[x.best] for x in choose(model, rows, answers).scores] == wanted


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma"])
def test_option_scores_sum_logprobs(open_model: Any, tiny_models: dict, family: str) -> None:
    model, rows = open_model(base=tiny_models[family]), chats(4)
    options = [answer_ids(model, rows[0].prompt, a, model.processor.stop_ids[0]) for a in ANSWERS]
    prompts = [model.processor.prompt(x.prompt) for x in rows]
    assert len({len(p) for p in prompts}) > 1, "the prompts are all of one length"
    wanted = [[brute_force(model, row, a) for a in ANSWERS] for row in rows]
    for got, true in zip(score_options(model, prompts, [options] * 4), wanted, strict=True):
        assert got.log_probs == pytest.approx(true, abs=2e-4)


def test_options_single_token_and_unrelated_prompts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, options = [[5, 6, 7], [8, 9], [5, 6, 8, 1]], [[[3], [4]], [[4, 3], [4], [4, 3, 3]], [[7]]]
    monkeypatch.setattr(option_scores, "TOKENS_AT_ONCE", 3)
    for prompt, own, got in zip(prompts, options, score_options(model, prompts, options), strict=True):
        for option, log_prob in zip(own, got.log_probs, strict=True):
            with torch.no_grad():
                logits = model.model(input_ids=torch.tensor([prompt + option])).logits[0].log_softmax(-1)
            wanted = sum(float(logits[len(prompt) - 1 + k, token]) for k, token in enumerate(option))
            assert log_prob == pytest.approx(wanted, abs=1e-5)


def test_what_several_options_begin_with_runs_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 300 common tokens and 4 own ones, with 5 options of 3 tokens of which the first is common."""
    sizes, real = [], type(model.backbone)._run

    def counted(self: Any, batch: Any, rows: Any) -> Any:
        sizes.append(len(batch.input_ids))
        return real(self, batch, rows)

    monkeypatch.setattr(type(model.backbone), "_run", counted)
    prompts = [[7] * 300 + [20 + i, 3, 4, 5] for i in range(10)]
    score_options(model, prompts, [[[9, 10 + k, 2] for k in range(5)]] * 10)
    assert sizes == [300 + 10 * (4 + 1 + 5)]


def test_greedy_path_through_options_is_the_greedy_answer(model: Any) -> None:
    """Where it leaves the options, it is not known; elsewhere nothing need be generated."""
    rows = chats(6)
    prompts = [model.processor.prompt(x.prompt) for x in rows]
    answers = generation.generate(model, prompts, 4)
    options = [[[*answer, 9], [*answer[:2], 9], [8, 9]] for answer in answers]
    for answer, scored in zip(answers, score_options(model, prompts, options), strict=True):
        assert list(scored.greedy) == answer and not scored.ends
    ended = [OptionScores((0.0,), tuple(answer[:2]), ends=True) for answer in answers[:3]]
    said = generate_answers(model, rows, 4, scored=[*ended, *(OptionScores((0.0,)) for _ in answers[3:])])
    wanted = [answer[:2] for answer in answers[:3]] + answers[3:]
    assert said == [model.processor.decode(list(x)).strip() for x in wanted]


def test_losses_equal_cross_entropy(model: Any) -> None:
    rows = chats()
    made = measure(model, SFT(), eval_set(model, rows), ["loss", "perplexity"]).scores
    total, count = 0.0, 0
    for x in rows:
        row: Row = SFT().rows(x, model.processor)[0]
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
        total += float(cross_entropy(logits, torch.tensor(row["labels"]), ignore_index=IGNORE, reduction="sum"))
        count += sum(label != IGNORE for label in row["labels"])
    assert made["loss"].value == pytest.approx(total / count, rel=1e-5) and made["loss"].n == len(rows)
    assert made["perplexity"].value == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-4)


def test_losses_of_scored_answers_need_no_second_pass(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with an answer before the last one are not what was scored: their batch runs."""
    first = Chat((Turn("user", "hi"), Turn("assistant", "fox"), Turn("user", "so"), Turn("assistant", ANSWERS[0])))
    sizes: list[int] = []
    real = type(model.backbone).__call__
    monkeypatch.setattr(
        type(model.backbone), "__call__", lambda self, batch, rows=None: (sizes.append(1), real(self, batch, rows))[1]
    )
    for rows, runs in ((chats(), 0), ([first, *chats()], 1)):
        held = eval_set(model, rows)
        alone = measure(model, SFT(), held, ["loss"])
        sizes.clear()
        with_choices = measure(model, SFT(), held, ["accuracy", "loss"])
        assert len(sizes) == 1 + runs, "one pass over the options, and the batches with other rows"
        for got, wanted in zip(with_choices.row_results["row_losses"], alone.row_results["row_losses"], strict=True):
            assert got[1] == wanted[1] and got[0] == pytest.approx(wanted[0], abs=1e-4)
        assert with_choices.scores["loss"].value == pytest.approx(alone.scores["loss"].value, rel=1e-6)


def test_evaluation_leaves_state_unchanged(model: Any) -> None:
    held = eval_set(model, chats())
    weights = {name: p.detach().clone() for name, p in model.trainable().items()}
    for training in (True, False):
        model.model.train(training)
        before = torch.get_rng_state()
        measure(model, SFT(), held, ["loss", "accuracy", "exact_match", "f1"], max_new_tokens=3)
        assert torch.equal(torch.get_rng_state(), before)
        assert model.model.training is training
    assert all(torch.equal(p.detach(), weights[name]) and p.grad is None for name, p in model.trainable().items())


def test_dropout_off_in_evaluation(open_model: Any, perturb_weights: Any) -> None:
    model = perturb_weights(open_model({"name": "lora", "rank": 4, "dropout": 0.5}))
    model.model.train()
    held = eval_set(model, chats())
    assert measure(model, SFT(), held, ["loss"]).scores == measure(model, SFT(), held, ["loss"]).scores


def test_limit_applies_to_generated_rows(model: Any) -> None:
    scores = measure(model, SFT(), eval_set(model, chats()), ["loss", "accuracy", "exact_match"], 6, 3).scores
    assert {name: s.n for name, s in scores.items()} == {"loss": 15, "accuracy": 6, "exact_match": 6}


def test_answers_in_order(model: Any) -> None:
    rows = chats(11)
    together = generate_answers(model, rows, 5)
    alone = [generate_answers(model, [x], 5)[0] for x in rows]
    assert together == alone


def test_plain_text_continued_from_start(model: Any) -> None:
    (said,) = generate_answers(model, [Text("the quick brown fox " * 30)], 4)
    assert isinstance(said, str)


def test_closed_answer_set_detected(model: Any) -> None:
    held = eval_set(model, chats())
    assert held.answers == tuple(sorted(ANSWERS))
    assert default_metrics(SFT(), held) == ("loss", "perplexity", "accuracy", "exact_match", "f1")
    open_ = EvalSet([Chat((Turn("user", "a"), Turn("assistant", f"{i}"))) for i in range(9)], list, None)
    assert open_.answers == () and default_metrics(SFT(), open_) == ("loss", "perplexity")
    long = EvalSet([Chat((Turn("user", "a"), Turn("assistant", "x" * (60 + i % 2)))) for i in range(9)], list, None)
    assert long.answers == ()


# -- through the pipeline ---------------------------------------------------------------------------------------------


def test_scores_and_samples_written(train_tiny: Any) -> None:
    run = train_tiny(evaluate={"metrics": ["loss", "exact_match"], "samples": 2})
    scores = run.read("scores.json")
    assert set(scores) == {"before", "after"} and set(scores["after"]) == {"loss", "exact_match"}
    assert all(s["n"] > 0 and s["low"] <= s["value"] <= s["high"] for side in scores.values() for s in side.values())
    samples = run.read("samples.jsonl")
    assert len(samples) == 2 and all(set(x) == {"prompt", "reference", "before", "after"} for x in samples)


def test_unmeasurable_best_metric_refused(train_tiny: Any, tmp_path: Any) -> None:
    from support.rows import write_jsonl

    rows = [{"prompt": f"the fox {i}", "completion": f"paris {i}"} for i in range(24)]  # no closed set of answers
    with pytest.raises(Exception, match="train.best_metric: accuracy"):
        train_tiny(data=[{"path": str(write_jsonl(tmp_path / "open.jsonl", rows))}], train={"best_metric": "accuracy"})


@pytest.mark.parametrize(
    "asked", [{"train": {"best_metric": "exact_match"}}, {"evaluate": {"metrics": ["loss", "exact_match"]}}]
)
def test_metric_of_other_objective_refused_early(train_tiny: Any, tmp_path: Any, asked: dict) -> None:
    from support.rows import write_jsonl

    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"fox {i}", "label": i % 2} for i in range(24)])
    with pytest.raises(RecipeError, match="exact_match does not fit objective classification. Its metrics: loss, accuracy"):
        train_tiny(data=str(rows), objective="classification", base="nowhere", **asked)


def test_validation_row_rejected_by_template_set_aside(train_tiny: Any, tmp_path: Any) -> None:
    from support.models import CHATML
    from support.rows import chat_rows, write_jsonl

    strict = tmp_path / "strict.jinja"
    strict.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML)
    rows = chat_rows(9)
    rows[1]["messages"].insert(0, {"role": "system", "content": "be kind"})
    held = write_jsonl(tmp_path / "held.jsonl", rows)
    run = train_tiny(
        chat_template=str(strict), validation={"path": str(held)}, evaluate={"metrics": ["exact_match"], "samples": 3}
    )
    assert run.read("scores.json")["after"]["exact_match"]["n"] == 8


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning_v2"])
def test_before_score_is_base_model(train_tiny: Any, tmp_path: Path, method: str) -> None:
    plain, prompted = train_tiny(out=str(tmp_path / "plain")), train_tiny(method={"name": method})
    assert prompted.read("scores.json")["before"]["loss"]["value"] == pytest.approx(
        plain.read("scores.json")["before"]["loss"]["value"], rel=1e-5
    )
