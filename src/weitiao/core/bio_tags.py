"""Tags of units and the entities they encode: BIO and BIOES.

    units    江      泽      民      在   北      京
    BIO      B-nr    I-nr    I-nr    O    B-ns    I-ns          Ramshaw & Marcus 1995, sec. 4.1, in its IOB2 form
    BIOES    B-nr    I-nr    E-nr    O    B-ns    E-ns          S- for a single unit; Ratinov & Roth 2009, sec. 4 (BILOU)

An entity is (index of its first unit, index after its last, type).
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from weitiao.core.errors import InvalidValue

Entity = tuple[int, int, str]
Scheme = Literal["bio", "bioes"]

OUTSIDE = "O"
PREFIXES = {"bio": "BI", "bioes": "BIES"}
OTHER_PREFIXES = {"M": "I", "L": "E", "U": "S"}  # BMES, BILOU

NOT_CLOSED = "tag {n} is {tag}, and no E-{kind} follows; repair_tags: true accepts it as an entity"
NOT_OPENED = "tag {n} is {tag} after {previous}, but an entity starts with B-; repair_tags: true accepts it as an entity"
NOT_OPENED_FIRST = "tag {n} is {tag} at the start, but an entity starts with B-; repair_tags: true accepts it as an entity"


def split_tag(tag: str) -> tuple[str, str]:
    """The prefix and the entity type of a tag; of O, ("O", "").

    >>> split_tag("B-nr"), split_tag("M-nr"), split_tag("O")
    (('B', 'nr'), ('I', 'nr'), ('O', ''))

    Raises:
        InvalidValue: the tag has no such form.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, kind = tag.partition("-")
    prefix = OTHER_PREFIXES.get(prefix, prefix)
    if not dash or not kind or prefix not in ("B", "I", "E", "S"):
        raise InvalidValue("the tag {tag!r} is none of O, B-x, I-x, E-x, S-x", tag=tag)
    return prefix, kind


def tags_to_entities(tags: Sequence[str], repair: bool = False) -> list[Entity]:
    """The entities that the tags encode. A row with an E- or S- is read as BIOES, any other as BIO.

    Args:
        repair: accept an entity that does not start with B-, or does not end with E-, as if it did. (IOB1, which writes B-
            only between adjacent entities of one type, is then read correctly.)

    Raises:
        InvalidValue: the tags break their scheme; the message names the tag.
    """
    parts = [split_tag(tag) for tag in tags]
    closes = any(prefix in "ES" for prefix, _ in parts)
    entities: list[Entity] = []
    current: Entity | None = None  # an entity that may continue

    def refuse(template: str, i: int, **fields: str) -> None:
        if not repair:
            raise InvalidValue(template, n=i + 1, tag=tags[i], **fields)

    for i, (prefix, kind) in enumerate(parts):
        continues = prefix in "IE" and current is not None and current[2] == kind
        if current is not None and not continues:
            if closes:
                refuse(NOT_CLOSED, i - 1, kind=current[2])
            entities.append(current)
            current = None
        if prefix == OUTSIDE:
            continue
        if prefix in "IE" and not continues:
            if i:
                refuse(NOT_OPENED, i, previous=tags[i - 1])
            else:
                refuse(NOT_OPENED_FIRST, i)
        entity = (current[0] if continues and current else i, i + 1, kind)
        if prefix in "ES":
            entities.append(entity)
        current = None if prefix in "ES" else entity
    if current is not None:
        if closes:
            refuse(NOT_CLOSED, len(tags) - 1, kind=current[2])
        entities.append(current)
    return entities


def entities_to_tags(entities: Iterable[Entity], num_units: int, scheme: Scheme = "bio") -> list[str]:
    """The tags of `num_units` units with these entities.

    >>> entities_to_tags([(0, 3, "nr"), (4, 5, "ns")], 5, "bioes")
    ['B-nr', 'I-nr', 'E-nr', 'O', 'S-ns']
    """
    tags = [OUTSIDE] * num_units
    for first, end, kind in entities:
        tags[first:end] = [f"I-{kind}"] * (end - first)
        tags[first] = f"B-{kind}"
        if scheme == "bioes":
            tags[end - 1] = f"{'E' if end - first > 1 else 'S'}-{kind}"
    return tags


def all_tags(entity_types: Sequence[str], scheme: Scheme) -> tuple[str, ...]:
    """O, and each entity type with each prefix."""
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in entity_types for prefix in PREFIXES[scheme]))


def can_start(tag: str) -> bool:
    """Whether a row may start with this tag."""
    return split_tag(tag)[0] not in "IE"


def can_end(tag: str, scheme: Scheme) -> bool:
    """Whether a row may end with this tag."""
    return scheme == "bio" or split_tag(tag)[0] not in "BI"


def can_follow(tag: str, previous: str, scheme: Scheme) -> bool:
    """Whether `tag` may follow `previous`."""
    (prefix, kind), (previous_prefix, previous_kind) = split_tag(tag), split_tag(previous)
    if prefix in "IE":
        return previous_prefix in "BI" and kind == previous_kind
    return can_end(previous, scheme)
