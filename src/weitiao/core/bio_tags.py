"""Tags of units and the entities they spell: BIO and BIOES.

    units    江      泽      民      在   北      京
    BIO      B-nr    I-nr    I-nr    O    B-ns    I-ns          Ramshaw & Marcus 1995, sec. 4.1, in its IOB2 form
    BIOES    B-nr    I-nr    E-nr    O    B-ns    E-ns          S- alone; Ratinov & Roth 2009, sec. 4 (BILOU)

An entity is (its first unit, the unit behind its last, its kind).
"""

from collections.abc import Iterable, Sequence
from typing import Literal

Entity = tuple[int, int, str]
Scheme = Literal["bio", "bioes"]

OUTSIDE = "O"
PREFIXES = {"bio": "BI", "bioes": "BIES"}
ALSO_KNOWN_AS = {"M": "I", "L": "E", "U": "S"}  # BMES, BILOU


def parted(tag: str) -> tuple[str, str]:
    """The prefix and the kind of a tag; of O, ("O", "").

    >>> parted("B-nr"), parted("M-nr"), parted("O")
    (('B', 'nr'), ('I', 'nr'), ('O', ''))

    Raises:
        ValueError: it is neither.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    prefix = ALSO_KNOWN_AS.get(prefix, prefix)
    if not dash or not kind or prefix not in ("B", "I", "E", "S"):
        raise ValueError(f"the tag {tag!r} is none of O, B-x, I-x, E-x, S-x")
    return prefix, kind


def entities(tags: Sequence[str], repair: bool = False) -> list[Entity]:
    """What the tags spell. A row with an E- or S- is read as BIOES, any other as BIO.

    Args:
        repair: an entity that does not begin with B-, or does not end with E-, is taken as if it did. (So IOB1, where
            B- stands only between neighbours of one kind, is read as it was meant.)

    Raises:
        ValueError: the tags break their scheme; which one, and where.
    """
    parts = [parted(tag) for tag in tags]
    closes = any(prefix in "ES" for prefix, _ in parts)
    found: list[Entity] = []
    open_: Entity | None = None  # an entity that may go on

    def refuse(i: int, why: str) -> None:
        if not repair:
            raise ValueError(f"tag {i + 1} is {tags[i]}{why}; write repair: true to take it as an entity of its own")

    for i, (prefix, kind) in enumerate(parts):
        continues = prefix in "IE" and open_ is not None and open_[2] == kind
        if open_ is not None and not continues:
            if closes:
                refuse(i - 1, f", and no E-{open_[2]} follows")
            found.append(open_)
            open_ = None
        if prefix == OUTSIDE:
            continue
        if prefix in "IE" and not continues:
            refuse(i, f" {f'after {tags[i - 1]}' if i else 'at the start'}: an entity begins with B-")
        now = (open_[0] if continues and open_ else i, i + 1, kind)
        if prefix in "ES":
            found.append(now)
        open_ = None if prefix in "ES" else now
    if open_ is not None:
        if closes:
            refuse(len(tags) - 1, f" at the end, and no E-{open_[2]} follows")
        found.append(open_)
    return found


def spell(found: Iterable[Entity], units: int, scheme: Scheme = "bio") -> list[str]:
    """The tags of so many units, of which these are entities.

    >>> spell([(0, 3, "nr"), (4, 5, "ns")], 5, "bioes")
    ['B-nr', 'I-nr', 'E-nr', 'O', 'S-ns']
    """
    tags = [OUTSIDE] * units
    for first, end, kind in found:
        tags[first:end] = [f"I-{kind}"] * (end - first)
        tags[first] = f"B-{kind}"
        if scheme == "bioes":
            tags[end - 1] = f"{'E' if end - first > 1 else 'S'}-{kind}"
    return tags


def every_tag(kinds: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    """O, and each kind with each prefix."""
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in PREFIXES[scheme]))


def may_begin(tag: str) -> bool:
    """Whether it may stand first."""
    return parted(tag)[0] not in "IE"


def may_end(tag: str, scheme: Scheme) -> bool:
    """Whether it may stand last."""
    return scheme == "bio" or parted(tag)[0] not in "BI"


def may_follow(tag: str, before: str, scheme: Scheme) -> bool:
    """Whether `tag` may stand behind `before`."""
    (prefix, kind), (prefix_before, kind_before) = parted(tag), parted(before)
    if prefix in "IE":
        return prefix_before in "BI" and kind == kind_before
    return may_end(before, scheme)
