"""Log-probabilities of fixed answers after a prompt, of a decoder."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weitiao.core.batch import IGNORE, Row, pack
from weitiao.core.lm_head import MAX_LOGITS
from weitiao.core.trainable_model import TrainableModel, evaluating

TOKENS_AT_ONCE = 4096  # that run, about; a prefix that all prompts share runs once for each


@dataclass(frozen=True)
class OptionScores:
    """What a model thinks of the options after a prompt."""

    log_probs: tuple[float, ...]
    """Of each option, the sum over its tokens."""
    greedy: tuple[int, ...] = ()
    """The most probable tokens one after another, as far as options begin with them."""
    ends: bool = False
    """Whether a stop token is the most probable after these: then they are the greedy answer."""
    next_token: int = -1
    """The most probable token after these."""

    @property
    def best(self) -> int:
        """The most probable option; the first of equals."""
        return max(range(len(self.log_probs)), key=self.log_probs.__getitem__)

    def is_greedy(self, option: Sequence[int]) -> bool:
        """Whether each token of one of the options is the most probable one."""
        return [*self.greedy, self.next_token][: len(option)] == list(option)


@torch.no_grad()
def score_options(
    model: TrainableModel,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    progress: Callable[[Sequence[Any], str], Any] = lambda items, description: items,
) -> list[OptionScores]:
    """The log-probability of each option after its prompt, of a decoder.

        few-shot examples - question 1 -+- A <end>            every token that several rows begin with runs once
                          |             +- B <end>            (core/shared_prefix.py), the last layer only where an
                          - question 2 -+- ...                option's token is predicted

    Args:
        prompts: token ids, without virtual tokens.
        options: of each prompt, the token ids of its options; each has at least one.

    Returns:
        In the prompts' order.
    """
    scores = [OptionScores(())] * len(prompts)
    with evaluating(model):
        for part in progress(_parts(prompts, options), "choices"):
            for i, score in zip(part, _score_part(model, [prompts[i] for i in part], [options[i] for i in part])):
                scores[i] = score
    return scores


def _parts(prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Indices of the prompts, neighbours with long common prefixes, in parts of about TOKENS_AT_ONCE different tokens."""
    parts: list[list[int]] = []
    previous: Sequence[int] = ()
    room = 0
    for i in sorted(range(len(prompts)), key=lambda i: list(prompts[i])):
        shared = next(
            (k for k, (a, b) in enumerate(zip(previous, prompts[i])) if a != b), min(len(previous), len(prompts[i]))
        )
        own = sum(map(len, options[i]))
        if not parts or room < len(prompts[i]) - shared + own:
            parts.append([])
            room, shared = max(TOKENS_AT_ONCE, 8 * len(prompts[i])), 0
        parts[-1].append(i)
        room -= len(prompts[i]) - shared + own
        previous = prompts[i]
    return parts


@dataclass
class _Node:
    """A beginning of options after a prompt; what follows it is predicted at one token of the batch."""

    row: int
    """Which row has it first."""
    offset: int
    """The token of that row at which it ends."""
    next_tokens: dict[int, "_Node | None"] = field(default_factory=dict)
    """What options go on with -> the longer beginning; None: the option ends."""
    log_probs: Sequence[float] = ()
    """Of each of `next_tokens`."""
    is_greedy: bool = False
    """Whether its tokens are the most probable ones."""
    most_probable: int = -1
    """The most probable next token, where `is_greedy`."""


def _score_part(
    model: TrainableModel, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]
) -> list[OptionScores]:
    """One forward pass over a row per option: its prompt and all of its tokens but the last."""
    rows: list[Row] = []
    nodes: list[_Node] = []  # a beginning before the longer ones
    roots: list[_Node] = []
    for prompt, own_options in zip(prompts, options):
        root = _Node(len(rows), len(prompt) - 1, is_greedy=True)
        roots.append(root)
        nodes.append(root)
        for option in own_options:
            node = root
            for k, token in enumerate(option[:-1]):
                following = node.next_tokens.get(token)
                if following is None:
                    following = node.next_tokens[token] = _Node(len(rows), len(prompt) + k)
                    nodes.append(following)
                node = following
            node.next_tokens.setdefault(option[-1], None)
            ids = [*prompt, *option[:-1]]
            rows.append({"input_ids": ids, "labels": [IGNORE] * len(ids)})
    batch = pack(rows).to(model.device)
    starts = {row: start for row, start in zip(batch.row_ids, batch.bounds)}
    positions, index = torch.tensor([starts[node.row] + node.offset for node in nodes], device=model.device).sort()
    _predict(model, model.hidden(batch, positions)[index.argsort()], nodes)
    return [_option_scores(root, own, model.processor.stop_ids) for root, own in zip(roots, options)]


def _predict(model: TrainableModel, hidden: Tensor, nodes: Sequence[_Node]) -> None:
    """Fill in what is predicted at each node, a chunk of [N, V] at a time.

    Args:
        hidden: [N, D] at the nodes.
    """
    at_once = max(1, MAX_LOGITS // len(model.lm_head.weight()))
    for start in range(0, len(nodes), at_once):
        chunk = nodes[start : start + at_once]
        logits, logsumexp = model.lm_head.normalized(hidden[start : start + at_once])  # [n, V], [n]
        rows = [row for row, node in enumerate(chunk) for _ in node.next_tokens]
        tokens = [token for node in chunk for token in node.next_tokens]
        log_probs = iter((logits[rows, tokens].float() - logsumexp[rows]).tolist())
        for node in chunk:
            node.log_probs = [next(log_probs) for _ in node.next_tokens]
        while greedy := [row for row, x in enumerate(chunk) if x.is_greedy and x.most_probable < 0]:
            for row, token in zip(greedy, logits[greedy].argmax(-1).tolist()):
                chunk[row].most_probable = token
                if (following := chunk[row].next_tokens.get(token)) is not None:
                    following.is_greedy = True


def _option_scores(root: _Node, options: Sequence[Sequence[int]], stop_ids: Collection[int]) -> OptionScores:
    sums = []
    for option in options:
        node: _Node | None = root
        total = 0.0
        for token in option:
            assert node is not None
            total += dict(zip(node.next_tokens, node.log_probs))[token]
            node = node.next_tokens[token]
        sums.append(total)
    greedy: list[int] = []
    node = root
    while node.most_probable not in stop_ids and (following := node.next_tokens.get(node.most_probable)) is not None:
        greedy.append(node.most_probable)
        node = following
    return OptionScores(tuple(sums), tuple(greedy), node.most_probable in stop_ids, node.most_probable)
