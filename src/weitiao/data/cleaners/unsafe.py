"""Rows with words of violence, sex, drugs, hate or self-harm, for a person to look at.

A list of words judges no text: a clinic's answers, the news and a novel have them too. So this is a hint by default, and
the list is short.
"""

import re
from collections.abc import Sequence
from typing import Literal

from weitiao.core.cleaner import RowCleaner, TextPart
from weitiao.core.messages import Message

WORDS = {
    "sex": (
        r"porn(?:o|ography|hub)?|blowjobs?|cumshots?|gangbang|hentai|milfs?|deepthroat",
        "色情片|色情网|成人电影|成人视频|黄片|A片|三级片|强奸片|约炮|裸聊|一夜情|援交",
    ),
    "violence": (
        r"behead(?:ed|ing)s?|how to (?:make|build) a (?:pipe )?bombs?|school shooting|mass shooting|dismember(?:ed|ing)?",
        "砍头|斩首|分尸|自制炸弹|制造炸弹|炸弹制作|枪支买卖|买凶杀人",
    ),
    "drugs": (
        r"crystal meth|methamphetamines?|heroin|crack cocaine|cook(?:ing)? meth",
        "冰毒|海洛因|摇头丸|贩毒|溜冰毒|大麻种子",
    ),
    "hate": (r"n[i1]gg(?:er|a)s?|fagg?ots?|k[i1]kes?|sp[i1]cs?|white power|heil hitler", "支那猪|支那人|黑鬼|死基佬|尼哥"),
    "self-harm": (
        r"kill (?:my|your)self|commit(?:ting)? suicide|suicide methods?|self-harm(?:ing)?|cut(?:ting)? my wrists?",
        "自杀方法|自杀教程|割腕|烧炭自杀|结束自己的生命|自残",
    ),
    "gambling and fraud": (
        r"online casinos?|nigerian prince|get rich quick|make money fast",
        "网络赌博|百家乐|六合彩|博彩网|刷单兼职|代开发票|办假证|洗钱渠道",
    ),
}
PATTERN = re.compile(
    "|".join(
        f"(?P<{topic.replace(' ', '_').replace('-', '_')}>(?<![a-z])(?:{english})(?![a-z])|{chinese})"
        for topic, (english, chinese) in WORDS.items()
    ),
    re.IGNORECASE,
)


class Unsafe(RowCleaner):
    """Point at rows with words of sex, violence, drugs, hate, self-harm or fraud; they are kept unless action: drop. A list
    of words cannot see what a text does: medicine and news have them, and threats need none."""

    action: Literal["drop", "hint"] = "hint"
    """hint: such rows are kept, counted and listed; drop: they are left out (quarantined)."""

    def refusal(self, parts: Sequence[TextPart]) -> Message | None:
        """The word, its topic and where it is."""
        for x in parts:
            if match := PATTERN.search(x.text):
                topic = str(match.lastgroup).replace("_", " ")
                return Message("{field} has {word!r} ({topic})", field=x.field, word=match[0], topic=topic)
        return None
