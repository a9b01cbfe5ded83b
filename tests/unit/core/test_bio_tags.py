"""BIO tags and their entities: conversion both ways, and the messages for tags that break their scheme."""

import itertools

import pytest

from weitiao.core.bio_tags import Scheme, all_tags, can_end, can_follow, can_start, entities_to_tags, tags_to_entities


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_spans_to_tags_roundtrip(scheme: Scheme) -> None:
    found = [(0, 1, "a"), (1, 3, "a"), (4, 7, "b")]
    assert tags_to_entities(entities_to_tags(found, 8, scheme)) == found
    assert tags_to_entities(entities_to_tags([], 3, scheme)) == []


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_transitions_allow_exactly_valid_tags(scheme: Scheme) -> None:
    """Of all rows of three tags: those that follow the rules are those that come back as they were."""
    seen = 0
    for tags in itertools.product(all_tags(("a", "b"), scheme), repeat=3):
        allowed = can_start(tags[0]) and can_end(tags[-1], scheme)
        allowed = allowed and all(can_follow(b, a, scheme) for a, b in zip(tags, tags[1:]))
        back = entities_to_tags(tags_to_entities(tags, repair=True), 3, scheme)
        assert allowed == (list(tags) == back), tags
        seen += allowed
    assert seen > 20


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("O I-a", "tag 2 is I-a after O, but an entity starts with B-; repair_tags: true"),
        ("I-a", "tag 1 is I-a at the start, but an entity starts with B-"),
        ("B-a I-b", "tag 2 is I-b after B-a"),
        ("B-a O S-b", "tag 1 is B-a, and no E-a follows"),
        ("S-b B-a", "tag 2 is B-a, and no E-a follows"),
        ("B-a E-b", "no E-a follows"),
        ("O NN", "the tag 'NN' is none of O, B-x, I-x, E-x, S-x"),
        ("B-", "the tag 'B-' is none of"),
        ("3", "the tag '3' is none of"),
    ],
)
def test_invalid_tag_sequence_named(tags: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tags_to_entities(tags.split())


def test_repair_iob1() -> None:
    assert tags_to_entities(["I-a", "I-a", "O", "I-b", "B-b"], repair=True) == [(0, 2, "a"), (3, 4, "b"), (4, 5, "b")]
    assert tags_to_entities(["E-a", "O", "B-b", "O"], repair=True) == [(0, 1, "a"), (2, 3, "b")]


def test_other_scheme_letters() -> None:
    assert (
        tags_to_entities(["B-a", "M-a", "E-a", "O", "S-b"])
        == tags_to_entities(["B-a", "I-a", "L-a", "O", "U-b"])
        == [(0, 3, "a"), (4, 5, "b")]
    )
