"""Shares: from weights, temperature, caps and what is asked; and what is refused."""

from typing import Any

import numpy as np
import pytest

from weitiao.core.errors import RecipeError
from weitiao.core.mixing import Groups
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.plan.mixing import Shares, check_mixing, choose_shares, size_groups

ROWS, LENGTHS = (900, 90, 10), (10, 20, 100)  # 9,000, 1,800 and 1,000 tokens
NAMES = ("a.jsonl", "b.jsonl", "c.jsonl")


def recipe(a: Any = None, b: Any = None, c: Any = None, **changes: Any) -> Recipe:
    sources = [{"path": name, **(x or {})} for name, x in zip(NAMES, (a, b, c))]
    return make_recipe({"base": "x", "data": sources, "out": "run", "train": {"epochs": 1}, **changes})


def shares_of(settings: Recipe, names: tuple[str, ...] = NAMES, batch: dict[str, int] | None = None) -> Shares:
    check_mixing(settings)
    groups = Groups(names, np.repeat(np.arange(3), ROWS))
    sized = size_groups(settings, groups, np.repeat(LENGTHS, ROWS))
    return choose_shares(settings, sized, batch or {"batch_tokens": 100})[0]


def powers(*sizes: float, temperature: float) -> list[float]:
    tempered = [x ** (1 / temperature) for x in sizes]
    return [x / sum(tempered) for x in tempered]


@pytest.mark.parametrize("temperature", [1, 2, 5])
def test_temperature(temperature: float) -> None:
    x = shares_of(recipe(mixing={"temperature": temperature}))
    assert x.actual == pytest.approx(powers(9000, 1800, 1000, temperature=temperature)) == x.requested
    assert x.epoch_tokens == 11_800


def test_high_temperature_is_all_alike() -> None:
    assert shares_of(recipe(mixing={"temperature": 1e6})).actual == pytest.approx([1 / 3] * 3, rel=1e-5)


def test_weight_and_cap_are_sizes() -> None:
    x = shares_of(recipe(a={"cap": {"rows": 300}}, b={"weight": 2}, c={"cap": {"tokens": 500}}))
    assert x.actual == pytest.approx([3000 / 7100, 3600 / 7100, 500 / 7100]) and x.epoch_tokens == 7100


def test_share_and_the_rest_by_size() -> None:
    x = shares_of(recipe(c={"share": 0.4}))
    assert x.actual == pytest.approx([0.6 * 9000 / 10800, 0.6 * 1800 / 10800, 0.4])


@pytest.mark.parametrize(
    ("strategy", "tokens"), [("total", 11_800), ("first_exhausted", 1000 / 0.5), ("all_exhausted", 9000 / 0.25)]
)
def test_stopping_strategy(strategy: str, tokens: float) -> None:
    """Half of all tokens of the smallest: it is used up first, the largest last."""
    x = shares_of(recipe({"share": 0.25}, {"share": 0.25}, {"share": 0.5}, mixing={"stopping_strategy": strategy}))
    assert x.epoch_tokens == pytest.approx(tokens)


@pytest.mark.parametrize("train", [{"epochs": 3}, {"steps": 354}, {"steps": 1000, "batch_size": 3}])
def test_cap_in_epochs_is_of_the_run(train: dict[str, Any]) -> None:
    """c is asked for half of all tokens, and each of its rows is used four times at most; a and b share what is over."""
    settings = recipe(c={"share": 0.5, "cap": {"epochs": 4}}, train=train)
    x = shares_of(settings, batch={"batch_size": 3} if "batch_size" in train else None)
    rows_a_token = (1 - x.actual[2]) * (5 / 6 / 10 + 1 / 6 / 20) + x.actual[2] / 100  # by the shares that there are
    total = 35_400 if "batch_size" not in train else 1.02 * 3000 / rows_a_token
    assert x.actual[2] == pytest.approx(4 * 1000 / total, rel=1e-3) and x.requested[2] == 0.5
    assert x.actual[0] / x.actual[1] == pytest.approx(5) and sum(x.actual) == pytest.approx(1)


def test_capped_sources_give_to_those_without_share_first() -> None:
    x = shares_of(recipe({"share": 0.3}, None, {"share": 0.4, "cap": {"tokens": 1180}}))
    assert x.actual == pytest.approx([0.3, 0.6, 0.1])
    y = shares_of(recipe({"share": 0.3}, {"share": 0.3}, {"share": 0.4, "cap": {"tokens": 1180}}))
    assert y.actual == pytest.approx([0.45, 0.45, 0.1])


def test_idle_cap_is_named() -> None:
    x = shares_of(recipe(a={"cap": {"rows": 901}}, c={"cap": {"rows": 9}}))
    assert x.idle_caps == ("a.jsonl",)


def test_labels_and_replay() -> None:
    plain = {"base": "x", "data": "a.jsonl", "objective": "classification", "out": "run"}
    settings = make_recipe(
        {
            **plain,
            "replay": {"path": "g.jsonl", "fraction": 0.2},
            "mixing": {"by": "label", "groups": {"ham": {"share": 0.5}}},
        }
    )
    assert shares_of(settings, ("ham", "spam", "g.jsonl")).actual == pytest.approx([0.5, 0.3, 0.2])


TASKS = {"name": "multi_task", "tasks": {"x": "classification", "y": "classification"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": {"share": 0.7}, "b": {"share": 0.4}}, "the shares add up to 1.1"),
        ({"a": {"share": 0.3}, "b": {"share": 0.3}, "c": {"share": 0.3}}, "together they are 0.9 of all tokens, not 1"),
        ({"a": {"share": 0.5}, "b": {"share": 0.5}}, "1 without a share would get nothing"),
        ({"a": {"share": 0.5}, "b": {"share": 0.4}, "replay": {"path": "g", "fraction": 0.2}}, "the shares add up to 1.1"),
        ({"mixing": {"groups": {"a.jsonl": {"share": 0.5}}}}, "of sources, write weight, share and cap at each source"),
        (
            {"a": {"weight": 2}, "mixing": {"by": "label"}, "objective": "classification"},
            "a.jsonl has a weight, share or cap",
        ),
        ({"mixing": {"by": "task"}}, "needs objective: multi_task"),
        ({"mixing": {"by": "label"}, "objective": TASKS}, "by: label is for an objective of one task"),
        ({"mixing": {}, "objective": {**TASKS, "temperature": 3}}, "write mixing.temperature alone"),
        ({"a": {"cap": {"rows": 1, "tokens": 5}}}, "write one of rows, tokens and epochs"),
        ({"a": {"cap": {}}}, "write one of rows, tokens and epochs"),
        ({"a": {"share": 1}}, "data.0.share: expected a number less than 1"),
        ({"a": {"cap": {"row": 1}}}, "unknown key 'data.0.cap.row'. Did you mean 'rows'"),
        ({"mixing": {"temperature": 0.5}}, "at least 1"),
        ({"mixing": {"temprature": 0.5}}, "Did you mean 'temperature'"),
        ({"a": {"cap": {"epochs": 0.1}}, "b": {"cap": {"rows": 1}}, "c": {"cap": {"rows": 1}}}, "with these caps"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        shares_of(recipe(**changes))
    assert message in str(refused.value)


def test_group_that_is_not_there() -> None:
    settings = recipe(mixing={"by": "label", "groups": {"spm": {"weight": 2}}}, objective="classification")
    with pytest.raises(RecipeError, match=r"there is no 'spm' in the data. Did you mean 'spam'"):
        shares_of(settings, ("ham", "spam", "other"))


def test_source_without_rows() -> None:
    groups = Groups(NAMES, np.repeat([0, 2], [5, 5]))
    with pytest.raises(RecipeError, match=r"b.jsonl has no row to train on"):
        size_groups(recipe(mixing={}), groups, np.full(10, 7))


@pytest.mark.parametrize("temperature", [1, 1000])
def test_cap_in_epochs_is_kept_in_steps_of_rows(temperature: float) -> None:
    """A step of so many rows has more tokens, the more of them are of the longest."""
    capped = recipe(
        a={"cap": {"epochs": 2}}, b={"cap": {"epochs": 2}}, mixing={"temperature": temperature}, train={"steps": 2000}
    )
    shares = np.array(shares_of(capped, batch={"batch_size": 8}).actual)
    rows_a_token = shares / LENGTHS
    times = rows_a_token / rows_a_token.sum() * 8 * 2000 / ROWS
    assert times[0] <= 2.01 and times[1] <= 2.01 < times[2]
