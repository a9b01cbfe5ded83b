"""Personal data and secrets: found where they are, nowhere else, and replaced by what cannot be real.

Judges: python-stdnum (check digits), phonenumbers (numbering plans). What is planted, and what only looks like it, is made
in bench/data_cleaning/planted.py, apart from weitiao's rules; the figures of docs/clean.md are of more rows.
"""

import random
from collections import Counter
from collections.abc import Callable
from unicodedata import normalize

import phonenumbers
import pytest
from stdnum import luhn
from stdnum.cn import ric
from stdnum.cn import uscc as stdnum_uscc
from stdnum.us import ssn

from bench.data_cleaning.planted import PLANTED, look_alikes, planted
from weitiao.core.errors import InvalidValue
from weitiao.data.personal_data.check_digits import has_luhn, resident_id_check, uscc_check
from weitiao.data.personal_data.replacement import replace_personal
from weitiao.data.personal_data.search import find_personal, kinds
from weitiao.data.personal_data.stand_ins import Key

KEY = Key(b"sixteen secret bytes")
WITH_CHECK_DIGIT = {"resident_id": ric.is_valid, "bank_card": luhn.is_valid, "uscc": stdnum_uscc.is_valid}
ROWS = 400  # of each kind


def certain(text: str) -> list[tuple[str, str]]:
    return [(x.kind, text[x.start : x.end]) for x in find_personal(text) if x.certain]


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_values_are_found_where_they_are(kind: str) -> None:
    missed = [text for text, a, b in planted(kind, ROWS) if (kind, text[a:b]) not in certain(text)]
    allowed = 0.005 if kind in WITH_CHECK_DIGIT else 0.02
    assert len(missed) <= allowed * ROWS, missed[:5]


def test_look_alikes_are_left_alone() -> None:
    rows, hits = Counter(), Counter()
    for family, text in look_alikes(4000):
        rows[family] += 1
        hits[family] += bool(certain(text))
    assert len(rows) >= 15 and hits.total() <= 0.01 * rows.total(), hits


@pytest.mark.parametrize(
    ("right", "judge", "make"),
    [
        (
            lambda x: resident_id_check(x[:17]) == x[17],
            ric.is_valid,
            lambda c: f"110101{c.randrange(1950, 2010)}0{c.randrange(1, 10)}15{c.randrange(10**4):04}",
        ),
        (has_luhn, luhn.is_valid, lambda c: f"62{c.randrange(10**14):014}"),
        (lambda x: uscc_check(x[:17]) == x[17], stdnum_uscc.is_valid, lambda c: f"91110105{c.randrange(10**10):010}"),
    ],
    ids=["resident_id", "bank_card", "uscc"],
)  # fmt: skip
def test_check_digits_equal_stdnum(right: Callable[[str], bool], judge: Callable[[str], bool], make: Callable) -> None:
    chance, valid = random.Random(0), 0
    for _ in range(3000):
        number = make(chance)
        assert right(number) == judge(number), number
        valid += judge(number)
    assert valid > 30


def test_valid_numbers_of_the_judges_are_found() -> None:
    chance, found, valid = random.Random(1), 0, 0
    while valid < 1000:
        mobile = f"1{chance.randrange(30, 100)}{chance.randrange(10**8):08}"
        if phonenumbers.number_type(phonenumbers.parse(mobile, "CN")) != phonenumbers.PhoneNumberType.MOBILE:
            continue
        valid += 1
        found += certain(f"我的手机号是{mobile}，谢谢") == [("mobile", mobile)]
    assert found >= 980, f"{found} of {valid}"
    for _ in range(2000):
        number = f"{chance.randrange(1, 900):03}-{chance.randrange(1, 100):02}-{chance.randrange(1, 10**4):04}"
        assert (("ssn", number) in certain(f"My SSN is {number}.")) == ssn.is_valid(number), number


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("电话13812345678谢谢", "mobile", "13812345678"),
        ("１３８１２３４５６７８", "mobile", "１３８１２３４５６７８"),
        ("call +86 138-1234-5678 now", "mobile", "138-1234-5678"),
        ("邮箱li@foo.cn收", "email", "li@foo.cn"),
        ("他的车牌粤B·D12345", "plate", "粤B·D12345"),
        ("加微信wang_88聊", "wechat", "wang_88"),
    ],
)
def test_han_characters_are_boundaries(text: str, kind: str, value: str) -> None:
    assert (kind, value) in certain(text)


@pytest.mark.parametrize(
    "text",
    [
        "订单号13812345678已发货",
        "共13812345678元",
        "version 1.38.12.34",
        "QQ音乐 8.0",
        "git@github.com:a/b.git",
        "li@example.com",
        "api_key=YOUR_API_KEY_HERE_12345",
        "3.14159265358979323846",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    assert certain(text) == []


@pytest.mark.parametrize("kind", PLANTED)
def test_stand_ins_are_consistent_and_cannot_be_real(kind: str) -> None:
    for text, a, b in planted(kind, 100):
        span = [x for x in find_personal(text) if (x.kind, x.start, x.end) == (kind, a, b)]
        if not span:
            continue
        replaced = replace_personal(text, span, "stand_in", KEY)
        assert replaced == replace_personal(text, span, "stand_in", KEY) != text
        assert replaced != replace_personal(text, span, "stand_in", Key(b"another sixteen bytes")), "the key decides"
        assert text[a:b] not in replaced
        value = replaced[a : len(replaced) - len(text) + b]
        narrow = normalize("NFKC", "".join(x for x in value if x.isalnum()))
        assert kind not in WITH_CHECK_DIGIT or not WITH_CHECK_DIGIT[kind](narrow), value


def test_equal_values_have_equal_stand_ins_in_any_text() -> None:
    texts = ("电话13812345678", "请打138-1234-5678找我")
    first, second = (replace_personal(x, find_personal(x), "stand_in", KEY) for x in texts)
    digits = ["".join(x for x in text if x.isdigit()) for text in (first, second)]
    assert digits[0] == digits[1] and len(digits[0]) == 11


def test_masks_are_in_the_language_of_the_text() -> None:
    for text, expected in (("电话13812345678", "电话[手机号]"), ("Mail: li@foo.cn", "Mail: [EMAIL]")):
        assert replace_personal(text, find_personal(text), "mask") == expected
    assert replace_personal("电话13812345678。", find_personal("电话13812345678。"), "drop") == "电话。"


def test_short_keys_are_refused() -> None:
    with pytest.raises(InvalidValue, match="15 bytes; at least 16"):
        Key(b"fifteen bytes..")


def test_every_kind_has_labels_in_both_languages() -> None:
    assert {"resident_id", "mobile", "api_key", "person_name", *PLANTED} <= set(kinds())


def test_only_some_kinds() -> None:
    text = "电话13812345678，邮箱 li@foo.cn"
    assert [x.kind for x in find_personal(text, ["email"])] == ["email"]


@pytest.mark.parametrize("end", ["\n", "\\n"])
def test_private_keys_with_line_ends_as_in_json(end: str) -> None:
    """A service account's file pasted into a text writes them as two characters."""
    key = end.join(
        ["-----BEGIN PRIVATE KEY-----", *["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBK"] * 5, "-----END PRIVATE KEY-----"]
    )
    assert certain(f'{{"private_key": "{key}"}}') == [("api_key", key)]
