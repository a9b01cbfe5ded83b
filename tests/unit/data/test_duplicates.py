"""Near-duplicates: every similar pair and no other, against all pairs by a second implementation; the same by shards."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data_cleaning.corpus import edited
from bench.data_cleaning.duplicates import all_pairs
from weitiao.core.errors import DataError
from weitiao.data.duplicates.clusters import SIMILARITY, cluster, find_duplicates
from weitiao.data.duplicates.overlap import near_duplicates
from weitiao.data.duplicates.signatures import Signatures, sign
from weitiao.data.duplicates.similar_pairs import DistinctRows

WORDS = """the a river house runs under every old tree where nobody ever
asks which way goes home again because it rains""".split()  # noqa: SIM905
HAN = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈剑号巨阙珠称夜光"


def groups(texts: list[str]) -> list[int]:
    return find_duplicates(texts).first.tolist()


def corpus(language: str, count: int) -> list[str]:
    """Random texts, a third of them edited copies of others."""
    chance = random.Random(language)
    texts: list[str] = []
    for i in range(count):
        if i > 10 and chance.random() < 0.33:
            share = chance.choice((0, 0.01, 0.03, 0.06, 0.1, 0.2))
            texts.append(edited(chance.choice(texts), share, HAN if language == "zh" else "abcdefg", chance))
        elif language == "zh":
            texts.append("".join(chance.choices(HAN, k=chance.randrange(4, 60))))
        else:
            texts.append(" ".join(chance.choices(WORDS, k=chance.randrange(3, 40))))
    return texts


@pytest.mark.parametrize("language", ["zh", "en"])
def test_pairs_equal_all_pairs(language: str) -> None:
    texts = corpus(language, 3000)
    truth = all_pairs(texts)
    rows, found = DistinctRows([sign(texts)]), set()
    for left, right in rows.similar_pairs():
        found |= {(min(a, b), max(a, b)) for a, b in zip(rows.first[left].tolist(), rows.first[right].tolist())}
    assert len(truth) > 150
    assert not found - truth, "precision is 1: every pair is compared exactly"
    assert len(truth & found) >= 0.995 * len(truth)


def test_traditional_and_simplified_width_and_case_do_not_count() -> None:
    assert groups(["我們在臺灣學習漢語，已經三年了", "我们在台湾学习汉语，已经三年了"]) == [0, 0]
    assert groups(["Hello, World of tests!", "ｈｅｌｌｏ,  world of tests!"]) == [0, 0]
    assert groups(["发", "髮", "發"])[1:] == [0, 0], "characters that are written alike in simplified"


def test_short_texts_are_compared_whole() -> None:
    assert groups(["好", "好的", "好", "ok", "OK", "okay"]) == [0, 1, 0, 3, 3, 5]


def test_clusters_are_connected_components() -> None:
    chance = random.Random(0)
    first = "".join(chance.choices(HAN, k=60))
    second = first[:-3] + "一二三"
    third = "四五六" + second[3:]
    clusters = find_duplicates([first, "别的一句话，与它们无关", third, second])
    assert clusters.first.tolist() == [0, 1, 0, 0] and clusters.duplicates.tolist() == [2, 3]
    assert not clusters.equals_first[2] and clusters.capped == 0


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_shards_give_the_same_clusters(parts: int, tmp_path: Path) -> None:
    texts = corpus("zh", 400) + corpus("en", 400)
    whole, shards = find_duplicates(texts), []
    for i, part in enumerate(np.array_split(np.arange(len(texts)), parts)):
        sign([texts[j] for j in part]).save(tmp_path / str(i))
        shards.append(Signatures.load(tmp_path / str(i)))
    joined = cluster(shards)
    assert np.array_equal(joined.first, whole.first) and np.array_equal(joined.equals_first, whole.equals_first)
    assert np.array_equal(joined.first_equal, whole.first_equal)
    (tmp_path / "0" / "bands.npy").unlink()
    with pytest.raises(DataError, match="holds no signatures"):
        Signatures.load(tmp_path / "0")


def test_many_rows_of_one_template_are_capped_and_said() -> None:
    texts = [
        f"您好，您的订单{i:08}已于今天发货，快递单号{i * 7:010}，请注意查收，如有问题请联系我们的在线客服"
        for i in range(4000)
    ]
    clusters = find_duplicates(texts)
    assert 0 < clusters.capped <= len(texts) and len(clusters.duplicates) > 500
    assert find_duplicates(texts).first.tolist() == clusters.first.tolist(), "the same each time"


def test_held_out_rows_in_training() -> None:
    training, held_out = corpus("zh", 300), ["与训练无关的一段话，里面没有重复", "短"]
    held_out += [training[5], training[7] + "。"]
    found = near_duplicates(training, held_out)
    assert found[2] == training.index(training[5]) and 3 in found and not {0, 1} & found.keys()
    assert near_duplicates([], held_out) == near_duplicates(training, []) == {}


@given(st.lists(st.text(max_size=30), max_size=20))
@settings(max_examples=80, deadline=None)
def test_any_text_is_taken(texts: list[str]) -> None:
    first = find_duplicates(texts).first
    assert len(first) == len(texts) and all(first[i] <= i and first[first[i]] == first[i] for i in range(len(texts)))
    twice = find_duplicates([*texts, *texts]).first
    assert all(twice[len(texts) + i] == twice[i] for i in range(len(texts))), "a copy is a duplicate"


@given(
    st.lists(st.text(alphabet=HAN + "ab ", max_size=40), min_size=1, max_size=12), st.sampled_from((0.5, SIMILARITY, 1.0))
)
@settings(max_examples=60, deadline=None)
def test_order_does_not_change_who_belongs_together(texts: list[str], similarity: float) -> None:
    def parts(order: list[int]) -> set[frozenset[str]]:
        first = find_duplicates([texts[i] for i in order], similarity).first.tolist()
        return {frozenset(texts[order[j]] for j in range(len(order)) if first[j] == k) for k in set(first)}

    order = list(range(len(texts)))
    assert parts(order) == parts(order[::-1])
