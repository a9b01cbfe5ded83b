"""Names of people: hints only, after words such as 姓名, or with a title. For more, train a token_classification Run."""

import re

from weitiao.data.personal_data.identifier import AnyOf
from weitiao.data.personal_data.stand_ins import Key

LABELS = ("[NAME]", "[姓名]")
BEFORE_NAME = ("我叫", "本人叫", "名叫", "姓名", "联系人", "收件人", "收货人", "户名", "申请人", "患者")
TITLES = ("先生", "女士", "小姐", "老师", "医生", "大夫", "律师", "经理", "教授")
TRIGGER = AnyOf(*BEFORE_NAME, *TITLES, "Mr", "Ms", "Dr", "Prof", "ame is ", "ame: ")
NEEDS_DIGIT = False
SURNAMES = (
    "欧阳|上官|司马|诸葛|东方|皇甫|尉迟|公孙|慕容|令狐|夏侯|司徒|"
    "[王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石"
    "廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤]"
)
PATTERN = re.compile(
    rf"(?:{'|'.join(BEFORE_NAME)})(?:[:是为]|\s)*(?P<after>(?:{SURNAMES})[\u4e00-\u9fff]{{1,2}})"
    r"(?![\u4e00-\u9fff])"
    rf"|(?P<titled>(?:{SURNAMES})[\u4e00-\u9fff]{{0,2}}?)(?={'|'.join(TITLES)})"
    r"|(?:\b(?:Mr|Mrs|Ms|Dr|Prof)\.? |\b[Mm]y name is |\b[Nn]ame: ?)"
    r"(?P<english>[A-Z][a-z]+(?: [A-Z]\.)?(?: [A-Z][a-z]+)?)\b"
)


def grade(match: re.Match[str]) -> bool | None:
    """Always a hint."""
    return False


def stand_in(value: str, key: Key) -> str:
    """A label: a made-up name would be somebody's."""
    number = key.draw("person_name", value).number(10**6)
    return f"[NAME_{number:06}]" if value.isascii() else f"[姓名{number:06}]"
