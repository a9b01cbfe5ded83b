"""How the turns of a conversation follow one another, where user and assistant do not simply alternate."""

from collections.abc import Sequence
from itertools import pairwise

from weitiao.core.example import Turn
from weitiao.core.messages import Message

ODDITIES = {
    "assistant_first": Message("{n:,} begin with the assistant"),
    "no_user": Message("{n:,} have no turn of the user"),
    "user_again": Message("{n:,} have two turns of the user in a row"),
    "assistant_again": Message("{n:,} have two turns of the assistant in a row"),
    "cut": Message("{n:,} go on after the last answer that is trained on: that end is cut off"),
}


def turn_oddities(turns: Sequence[Turn]) -> set[str]:
    """Keys of ODDITIES; empty where user and assistant alternate, and the last turn is an answer."""
    roles = [turn.role for turn in turns if turn.role != "system"]
    oddities = {f"{a}_again" for a, b in pairwise(roles) if a == b and a in ("user", "assistant")}
    if "user" not in roles:
        oddities.add("no_user")
    elif roles[0] == "assistant":
        oddities.add("assistant_first")
    if not turns[-1].is_target:
        oddities.add("cut")
    return oddities
