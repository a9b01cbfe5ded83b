"""Each rule of data/cleaners on texts as they are found, and on texts that it must leave alone."""

from pathlib import Path
from typing import Any

import pytest

from weitiao.core.cleaner import RowCleaner, TextCleaner, TextPart
from weitiao.core.registry import find

CHANGED: list[tuple[str, dict[str, Any], str, str]] = [
    ("unicode", {}, "（１９９８年）ＡＢＣ，％！", "（1998年）ABC，％！"),
    ("unicode", {}, "⾸⻚⾼⼈ ⻢⻰", "首页高人 马龙"),
    ("unicode", {}, "cafe\u0301 ﬁle ½ ①", "café file ½ ①"),
    ("invisible", {}, "a\u200bb\ufeffc\u00add\x00", "abcd"),
    ("invisible", {}, "\x1b[33m -- \x1b[32m《道德经》\x1b[m", " -- 《道德经》"),
    ("invisible", {}, "N\x08NAME\r\nx\ry\u2028z", "NAME\nx\ny\nz"),
    ("invisible", {}, "abc\u202edef", "abcdef"),
    ("mojibake", {}, "donâ€™t cafÃ© ä¸\xadæ–‡", "don’t café 中文"),
    ("mojibake", {}, "ÖÐÎÄÄÚÈÝ", "中文内容"),
    ("mojibake", {}, "鎴戜滑 don鈥檛", "我们 don’t"),
    ("mojibake", {}, "點評：" + " 房間衛生太差...".encode("big5").decode("gb18030"), "點評： 房間衛生太差..."),
    ("html", {}, "<p>Hello&nbsp;<b>world</b> &amp; all</p><ul><li>one<li>two</ul>", "Hello world & all\n\n- one\n- two"),
    ("html", {}, "第一段<br>第二段&#183;完", "第一段\n第二段·完"),
    ("html", {}, "<table><tr><td>a<td>b</tr><tr><td>c<td>d</tr></table>", "a\tb\nc\td"),
    ("html", {}, "前<b>中</b>后\n\n  下一行", "前中后\n\n  下一行"),
    ("html", {}, "<think>I see <i>x</i></think> a < b", "<think>I see x</think> a < b"),
    ("html", {}, "```html\n<p>hi</p>\n``` is <i>code</i>", "```html\n<p>hi</p>\n``` is code"),
    ("html", {}, "<style>p{}</style><div onclick='x()'>text<script>1</script></div>", "text"),
    ("boilerplate", {}, "正文第一段\n\n长按识别下方二维码关注我们\n责任编辑：张三", "正文第一段"),
    ("boilerplate", {}, "The text.\n\n© 2020 Example Ltd. All rights reserved.\nUnsubscribe", "The text."),
    ("repeated_text", {}, "好" * 40 + "！", "好好好！"),
    ("repeated_text", {}, "设计非常漂亮,散热很棒 " * 5, "设计非常漂亮,散热很棒 "),
    ("repeated_text", {}, "the same line again\n" * 4 + "end", "the same line again\nend"),
    ("personal_data", {}, "电话13812345678", "电话[手机号]"),
    ("personal_data", {"action": "drop"}, "write to a.b@foo.org now", "write to  now"),
    ("secrets", {}, "key: sk-ant-api03-Zx9Kq2mWv7Lp4Rt8Yn3Bd6Hj", "key: [SECRET]"),
    ("fillers", {}, "So, um, we went to the, uh, store.", "So, we went to the store."),
    ("fillers", {"level": "hedges"}, "嗯，那个，我们走吧，就是说，马上。", "我们走吧，马上。"),
]  # fmt: skip
UNCHANGED: list[tuple[str, dict[str, Any], str]] = [
    ("unicode", {}, "“中文”，《书》——（１）".replace("１", "1")),
    ("invisible", {}, "می\u200cخواهم 👨\u200d👩\u200d👧 क्\u200dष\u3000x\u00a0y"),
    ("invisible", {}, "אבג \u200f(x)"),
    ("mojibake", {}, "À–Ö, «été», Ünïcödé, ÀÂÄÉÈÊËÎÏÔÖÙÛÜ, 小说 联通 ひらがな カタカナ Ελλάδα"),
    ("html", {}, "Use <br> or <b> for this; if a<b and c>d: vector<int> x"),
    ("html", {}, "<|im_start|>user\nAT&T, x&y"),
    ("boilerplate", {}, "版权所有"),
    ("boilerplate", {}, "# All rights reserved.\ndef f(): pass"),
    ("repeated_text", {}, "-" * 80 + "\n哈哈哈哈\n" + "0" * 40 + "\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/wAAAA=="),
    ("repeated_text", {}, "关关雎鸠，在河之洲。\n参差荇菜，左右流之。\n参差荇菜，左右采之。"),
    ("personal_data", {}, "订单13812345678901，金额13812345678.00元"),
    ("secrets", {}, "api_key = os.environ['API_KEY']"),
    ("fillers", {"level": "hedges"}, "这个酒店那个房间，就是有点贵啊。I like you, I know."),
]  # fmt: skip
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("length", {"min_characters": 5}, "四个字。"),
    ("length", {"max_characters": 5}, "six..."),
    ("length", {"min_answer": 3}, "ok"),
    ("language", {}, "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter."),
    ("language", {"keep": "zh"}, "This is a perfectly ordinary English sentence about the weather."),
    ("language", {}, "これは天気についての普通の文です。"),
    ("as_an_ai", {}, "I'm sorry, but as an AI language model, I cannot do that."),
    ("as_an_ai", {}, "作为一个人工智能语言模型，我无法回答。"),
    ("quality", {}, "锟斤拷锟斤拷 这是什么"),
    ("quality", {}, "buy now cheap pills " * 30),
    ("quality", {}, "=-=-=-=-" * 40),
    ("unsafe", {"action": "drop"}, "Nigerian prince: make money fast"),
]
KEPT: list[tuple[str, dict[str, Any], str]] = [
    ("length", {}, "好的"),
    ("language", {}, "用 Python 的 list comprehension 写"),
    ("language", {}, "ok"),
    ("language", {"keep": "en"}, "```python\nprint('今天天气')\n```"),
    ("language", {"keep": "zh"}, "¯\\_(ツ)_/¯ 乾杯"),
    ("as_an_ai", {}, "As an AI researcher, she works on language models. 人工智能是一门学科，我很喜欢。"),
    ("quality", {}, "这家酒店的位置很好，离地铁站很近，房间干净，服务员也很热情，下次还会来。" * 1),
    ("unsafe", {}, "门口交通很方便，安禅制毒龙，XXX型号"),
]


@pytest.mark.parametrize(("name", "settings", "text", "expected"), CHANGED)
def test_text_is_changed(name: str, settings: dict[str, Any], text: str, expected: str) -> None:
    rule = find("cleaner", name)(**settings)
    assert isinstance(rule, TextCleaner)
    assert rule.clean(text) == expected


@pytest.mark.parametrize(("name", "settings", "text"), UNCHANGED)
def test_text_stays(name: str, settings: dict[str, Any], text: str) -> None:
    rule = find("cleaner", name)(**settings)
    assert isinstance(rule, TextCleaner)
    assert rule.clean(text) == text


def refusal(name: str, settings: dict[str, Any], text: str) -> str:
    rule = find("cleaner", name)(**settings)
    assert isinstance(rule, RowCleaner)
    return str(rule.refusal([TextPart(("text",), "answer", text)]) or "")


@pytest.mark.parametrize(("name", "settings", "text"), REFUSED)
def test_row_is_refused(name: str, settings: dict[str, Any], text: str) -> None:
    assert refusal(name, settings, text)


@pytest.mark.parametrize(("name", "settings", "text"), KEPT)
def test_row_stays(name: str, settings: dict[str, Any], text: str) -> None:
    assert not refusal(name, settings, text)


@pytest.mark.parametrize("text", ["嗯。", "um", "呃", "uh, um.", "嗯嗯", "那个"])
def test_fillers_leave_nothing_empty(text: str) -> None:
    for level in ("sounds", "hedges"):
        rule = find("cleaner", "fillers")(level=level)
        assert isinstance(rule, TextCleaner) and rule.clean(text) == text


def test_stand_ins_need_a_key(tmp_path: Path) -> None:
    from weitiao.core.errors import RecipeError

    with pytest.raises(RecipeError, match="needs key_file"):
        find("cleaner", "personal_data")(action="stand_in").check()  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    (tmp_path / "other").write_bytes(b"fedcba9876543210")
    one, other = (find("cleaner", "personal_data")(action="stand_in", key_file=str(tmp_path / x)) for x in ("key", "other"))
    text = "电话13812345678"
    assert isinstance(one, TextCleaner) and isinstance(other, TextCleaner)
    assert one.clean(text) == one.clean(text) != other.clean(text) and one.identity() != other.identity()
    assert "13812345678" not in one.clean(text)
