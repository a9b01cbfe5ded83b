"""New merges: the greedy rule, what may become a token, and that nothing changes where none of them applies."""

import json
import random
from collections import Counter
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.support.models import make_tokenizer, make_wordpiece_tokenizer
from weitiao.core.errors import DataError, ModelError
from weitiao.core.extended_tokenizer import NUM_OWN, old_pieces, without_new_merges
from weitiao.data.vocabulary_extension import extend
from weitiao.data.vocabulary_extension.byte_level import readable, to_bytes
from weitiao.data.vocabulary_extension.measure import latin_terms, new_terms, rates
from weitiao.data.vocabulary_extension.merges import learn_merges, may_be_token, pieces_of
from weitiao.data.vocabulary_extension.writing_scripts import SCRIPTS, script_of, scripts_to_extend

CHINESE = [
    "我们在图书馆看书。",
    "图书馆里有很多书，我们都喜欢。",
    "他们在看猫咪。",
    "猫咪喜欢图书馆！",
    "我们看书，他们看猫咪。",
] * 4
ENGLISH = [
    "The quick brown fox; it's 5 o'clock.",
    "naïve café — “quoted” … 😀 1,234",
    "def f(x):\n    return x ** 2\n",
    " ",
]


@pytest.fixture(scope="module")
def base() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def new(base: Any) -> Any:
    return extend.extended(base, extend.learn(base, CHINESE, 40).merges)


def test_merges_are_those_of_counting_again_after_each() -> None:
    """The linked list, against the definition: count all pairs, merge the most frequent, start over."""
    random.seed(3)
    words = Counter(tuple(random.choices("abcd", k=random.randint(2, 9))) for _ in range(300))
    for merge in learn_merges(words, lambda _: False, 25, lambda point: True):
        pair, counts = (merge.left, merge.right), Counter[tuple[str, str]]()
        for word, n in words.items():
            for x in zip(word, word[1:]):
                counts[x] += n
        rivals = [n for other, n in counts.items() if other[0] != other[1] and "".join(other) != merge.token]
        assert counts[pair] == merge.count or pair[0] == pair[1]  # aaa holds aa twice, and is merged once
        assert counts[pair] >= max(rivals)
        after = Counter[tuple[str, ...]]()
        for word, n in words.items():
            after[merged(word, pair)] += n
        words = after


def merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result: list[str] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] = "".join(pair) + "\0"  # not merged again with the next
        else:
            result.append(piece)
    return tuple(x.removesuffix("\0") for x in result)


def test_ids_change_only_where_a_new_token_is(base: Any, new: Any) -> None:
    assert len(new) == len(base) + 40
    for text in [*ENGLISH, *CHINESE, "图书馆 the library 图", "<|im_end|>我们", ""]:
        before, after = (x(text).input_ids for x in (base, new))
        assert new.decode(after) == base.decode(before) == text
        if before != after:
            assert any(x >= len(base) for x in after)
    assert all(base(x).input_ids == new(x).input_ids for x in ENGLISH)
    assert not list(extend.check_extension(base, new, [*ENGLISH, *CHINESE]))
    assert sum(len(new(x).input_ids) for x in CHINESE) < sum(len(base(x).input_ids) for x in CHINESE) / 3


def test_the_check_can_fail(base: Any) -> None:
    wrong = extend.extended(base, [])
    wrong.backend_tokenizer.normalizer = normalizers.Lowercase()
    faults = [str(x) for x in extend.check_extension(base, wrong, ["the fox", "The Fox"])]
    assert faults and all("The Fox" in x for x in faults)
    latin = extend.extended(base, extend.learn(base, ["while the wizard", "while it is"] * 3, 3, ["latin"]).merges)
    assert latin("while").input_ids != base("while").input_ids
    assert not list(extend.check_extension(base, latin, ["while the wizard"]))


def test_new_tokens_are_whole_characters_or_the_beginning_of_one(base: Any, new: Any) -> None:
    added = [new.convert_ids_to_tokens(i) for i in range(len(base), len(new))]
    assert all(may_be_token(x, lambda point: script_of(point) == "han") for x in added)
    assert "图书馆" in [readable(x) for x in added]
    assert not may_be_token("«åĴ", lambda point: True)  # the end of one character and the beginning of the next
    assert not may_be_token("çĮ«åĴ", lambda point: True)  # a character and the beginning of the next
    assert may_be_token("çĮ", lambda point: script_of(point) == "han")
    assert not may_be_token("âĢ", lambda point: script_of(point) == "han")  # of — “ ” …, which English has too


def test_pieces_are_the_bases_own_ids(base: Any, new: Any) -> None:
    """What a new token is made of: the base's tokens of the same bytes, known from the file alone."""
    merges = extend.learn(base, CHINESE, 40).merges
    spelled = pieces_of(merges)
    for i, ids in enumerate(old_pieces(new, len(base)), len(base)):
        token = new.convert_ids_to_tokens(i)
        assert base.convert_ids_to_tokens(ids) == list(spelled[token])
        assert b"".join(to_bytes(x) for x in spelled[token]) == to_bytes(token)


def test_files_keep_it_and_it_can_be_taken_back(base: Any, new: Any, tmp_path: Any) -> None:
    new.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert [opened(x).input_ids for x in CHINESE + ENGLISH] == [new(x).input_ids for x in CHINESE + ENGLISH]
    assert opened.init_kwargs[NUM_OWN] == len(base)
    old = without_new_merges(opened)
    assert len(old) == len(base)
    assert [old(x).input_ids for x in CHINESE + ENGLISH] == [base(x).input_ids for x in CHINESE + ENGLISH]


def test_extended_twice(base: Any, new: Any) -> None:
    more = extend.extended(new, extend.learn(new, ["电脑和手机", "电脑很好", "手机很好"] * 3, 5).merges)
    assert len(more) == len(base) + 45
    assert more.init_kwargs[NUM_OWN] == len(base)
    assert not list(extend.check_extension(new, more, CHINESE + ENGLISH))


def test_only_byte_level_bpe(base: Any) -> None:
    with pytest.raises(ModelError, match="WordPiece"):
        extend.learn(make_wordpiece_tokenizer(), CHINESE, 5)
    with pytest.raises(DataError, match="Latin"):
        extend.learn(base, ["plain English text"] * 9, 5)


def test_scripts() -> None:
    assert [script_of(ord(x)) for x in "猫，！。ねа가 a1—😀é"] == [
        "han", "han", "han", "han", "kana", "cyrillic", "hangul", "none", "latin", "none", "none", "none", "latin",
    ]  # fmt: skip
    assert scripts_to_extend(["我们喜欢 English 和猫"]) == ("han",)
    assert scripts_to_extend(["English with one 猫 in a long text of many, many letters of Latin"]) == ()
    assert {script_of(x) for x in range(0x30000)} <= {*SCRIPTS, "none", "lost"}


def test_what_is_measured(base: Any) -> None:
    measured = rates(base, CHINESE + ENGLISH[:1] * 3)
    assert measured[""].tokens == measured["han"].tokens + measured["latin"].tokens
    assert measured["han"].low <= measured["han"].value <= measured["han"].high
    assert measured["han"].value == sum(len(base(x).input_ids) for x in CHINESE) / sum(map(len, CHINESE))
    (term,) = latin_terms(base, ["Kubernetes is what Kubernetes does"], 1)
    assert (term.text, term.count) == ("Kubernetes", 2)
    assert "".join(term.pieces) == " Kubernetes"
    terms = new_terms(extend.learn(base, CHINESE, 40).merges, 3)
    assert all(len(x.text) >= 2 and len(x.pieces) >= 2 for x in terms)
    assert [x.extra for x in terms] == sorted((x.extra for x in terms), reverse=True)


def test_special_tokens_behind_the_vocabulary_keep_their_ids(base: Any, tmp_path: Any) -> None:
    """Qwen2 and Llama 3 have them there: read again, they would be numbered behind the new tokens."""
    state = json.loads(base.backend_tokenizer.to_str())
    special = [x["content"] for x in state["added_tokens"]]
    vocabulary = [x for x in sorted(state["model"]["vocab"], key=state["model"]["vocab"].get) if x not in special]
    state["model"]["vocab"] = {token: i for i, token in enumerate(vocabulary)}
    for i, x in enumerate(state["added_tokens"], len(vocabulary)):
        x["id"] = i
    files = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **files)
    merges = extend.learn(own, CHINESE, 40).merges
    new = extend.extended(own, merges)
    new.save_pretrained(tmp_path)
    for tokenizer in (new, AutoTokenizer.from_pretrained(tmp_path)):
        assert {token: tokenizer.get_vocab()[token] for token in own.get_vocab()} == own.get_vocab()
        assert len(set(tokenizer.get_vocab().values())) == len(tokenizer.get_vocab()) == len(own) + len(merges)
        assert tokenizer.eos_token_id == own.eos_token_id
        assert not list(extend.check_extension(own, tokenizer, [*CHINESE, *ENGLISH, "<|im_start|>user hi<|im_end|>"]))
    assert without_new_merges(new).get_vocab() == own.get_vocab()


def test_the_check_sees_moved_ids(base: Any, new: Any) -> None:
    class Moved:
        def __call__(self, *arguments: Any, **settings: Any) -> Any:
            return new(*arguments, **settings)

        def decode(self, ids: Any) -> str:
            return new.decode(ids)

        def get_vocab(self) -> dict[str, int]:
            return {**new.get_vocab(), "<|im_end|>": len(base)}

    said = [str(x) for x in extend.check_extension(base, Moved(), [])]
    assert any("has another id" in x for x in said) and any("two tokens have one id" in x for x in said)
