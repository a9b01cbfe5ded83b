"""Made-up personal data in sentences, and 100,000 things that look like it. Made apart from weitiao's own rules."""

import hashlib
import random
import string
import uuid
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from unicodedata import normalize

Chance = random.Random
DIGITS = string.digits
COUNTIES = (
    "110101 110105 120103 130102 210102 310101 310115 320106 330106 350102 370102 410105 420106 430102 440106 440305 "
    "510104 610113"
)
BEFORE_ZH = ("", "您好，", "请联系我，", "资料如下：", "客户登记：", "他说", "备注")
AFTER_ZH = ("", "。", "，谢谢", "请尽快处理", "（已核对）", "！", "的用户")
BEFORE_EN = ("", "Hello, ", "Please note: ", "As agreed, ", "(")
AFTER_EN = ("", ".", ", thanks", " please", ")", " and so on")


def digits(chance: Chance, count: int) -> str:
    """Random digits, the first of them not 0."""
    return chance.choice("123456789") + "".join(chance.choices(DIGITS, k=count - 1))


def spaced(text: str, groups: tuple[int, ...], gap: str) -> str:
    """Groups of characters with a gap between them; the last takes the rest."""
    parts, place = [], 0
    for size in groups:
        parts.append(text[place : place + size])
        place += size
    return gap.join([*parts, text[place:]] if place < len(text) else parts)


def wide(text: str) -> str:
    """In full-width characters."""
    return "".join(chr(ord(x) + 0xFEE0) if "!" <= x <= "~" else x for x in text)


def resident_id(chance: Chance) -> tuple[str, str, str]:
    """(words before, number, words after)"""
    born = date(1940, 1, 1) + timedelta(days=chance.randrange(29_000))
    first = chance.choice(COUNTIES.split()) + born.strftime("%Y%m%d") + f"{chance.randrange(1000):03}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    number = first + "10X98765432"[sum(int(x) * w for x, w in zip(first, weights)) % 11]
    shape = chance.randrange(6)
    number = (number, number, number.lower(), spaced(number, (6, 8), " "), spaced(number, (6, 4, 4), "-"), wide(number))[
        shape
    ]
    return chance.choice(("身份证", "身份证号：", "证件号码", "ID: ", "号码是", "我的")), number, ""


MOBILE = [
    "130", "131", "135", "136", "138", "139", "147", "150", "151", "158", "159", "166", "171",
    "173", "176", "177", "178", "180", "185", "186", "188", "189", "191", "198", "199",
]  # fmt: skip


def mobile(chance: Chance) -> tuple[str, str, str]:
    prefix = chance.choice(MOBILE)
    number = prefix + "".join(chance.choices(DIGITS, k=8))
    number = chance.choice((number, number, number, spaced(number, (3, 4), "-"), spaced(number, (3, 4), " "), wide(number)))
    return chance.choice(("电话", "手机：", "联系", "微信同号", "致电", "tel ", "+86", "+86 ", "我的号码是")), number, ""


def landline(chance: Chance) -> tuple[str, str, str]:
    area = chance.choice(("010", "021", "020", "028", "0571", "0755", "0311", "0898"))
    number = chance.choice("2345678") + "".join(chance.choices(DIGITS, k=7))
    shape = chance.randrange(4)
    text = (f"{area}-{number}", f"({area}){number}", f"{area} {number[:4]} {number[4:]}", f"{area}{number}")[shape]
    return chance.choice(("电话：", "座机", "传真", "拨打", "Tel: ")), text, ""


def bank_card(chance: Chance) -> tuple[str, str, str]:
    prefix, length = chance.choice(
        (("6222", 19), ("6217", 19), ("6225", 16), ("4", 16), ("52", 16), ("37", 15), ("95588", 19))
    )
    first = prefix + "".join(chance.choices(DIGITS, k=length - 1 - len(prefix)))
    total = sum(x if i % 2 else (2 * x - 9 if 2 * x > 9 else 2 * x) for i, x in enumerate(int(y) for y in reversed(first)))
    number = first + str(-total % 10)
    if length != 15:
        number = chance.choice(
            (number, number, spaced(number, (4, 4, 4, 4), " "), spaced(number, (4, 4, 4, 4), "-"), wide(number))
        )
    return chance.choice(("卡号", "银行卡：", "card ", "转到", "打款至", "付款账户 ", "请汇入")), number, ""


def passport(chance: Chance) -> tuple[str, str, str]:
    number = chance.choice(("E", "G", "EA", "EJ"))
    number += "".join(chance.choices(DIGITS, k=9 - len(number)))
    return chance.choice(("护照", "护照号：", "passport ", "Passport No. ")), number, ""


def plate(chance: Chance) -> tuple[str, str, str]:
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    rest = chance.choice(("12345", "A1234", "8B8C8", "D12345", "F01234"))
    rest = "".join(chance.choice(DIGITS) if x.isdigit() else x for x in rest)
    gap = chance.choice(("", "", "·"))
    return (
        chance.choice(("车牌", "车牌号：", "车辆", "停着")),
        chance.choice("京沪粤浙苏川鲁") + chance.choice(letters) + gap + rest,
        "",
    )


def uscc(chance: Chance) -> tuple[str, str, str]:
    characters = "0123456789ABCDEFGHJKLMNPQRTUWXY"
    first = "91" + chance.choice(COUNTIES.split()) + "".join(chance.choices(characters, k=9))
    weights = (1, 3, 9, 27, 19, 26, 16, 17, 20, 29, 25, 13, 8, 24, 10, 30, 28)
    code = first + characters[(31 - sum(characters.index(x) * w for x, w in zip(first, weights)) % 31) % 31]
    return chance.choice(("统一社会信用代码：", "税号", "代码", "纳税人识别号")), code, ""


def email(chance: Chance) -> tuple[str, str, str]:
    name = "".join(chance.choices(string.ascii_lowercase, k=5)) + chance.choice(("", ".li", "_88", "+a", "2024"))
    domain = chance.choice(("qq.com", "163.com", "gmail.com", "mail.foo.edu.cn", "bar-baz.co.uk"))
    return chance.choice(("邮箱", "邮箱：", "发到", "mail: ", "contact ")), f"{name}@{domain}", ""


def ip(chance: Chance) -> tuple[str, str, str]:
    first = chance.choice((8, 36, 58, 101, 114, 121, 183, 202, 220))
    address = f"{first}.{chance.randrange(1, 255)}.{chance.randrange(255)}.{chance.randrange(1, 255)}"
    return chance.choice(("IP", "IP：", "登录地址", "from ", "服务器")), address, ""


def wechat(chance: Chance) -> tuple[str, str, str]:
    name = "".join(chance.choices(string.ascii_lowercase, k=6)) + chance.choice(("_88", "2024", "-ok1"))
    return chance.choice(("微信", "微信：", "微信号", "加微信", "WeChat: ", "VX：", "微信号是")), name, ""


def qq(chance: Chance) -> tuple[str, str, str]:
    return chance.choice(("QQ", "QQ：", "QQ号", "加qq ", "扣扣", "QQ群")), digits(chance, chance.randint(6, 10)), ""


def us_phone(chance: Chance) -> tuple[str, str, str]:
    area, exchange = f"{chance.choice((212, 415, 303, 617, 713))}", f"{chance.choice((234, 365, 482, 731, 894))}"
    last = "".join(chance.choices(DIGITS, k=4))
    text = (
        f"({area}) {exchange}-{last}",
        f"{area}-{exchange}-{last}",
        f"{area}.{exchange}.{last}",
        f"{area}{exchange}{last}",
    )
    return chance.choice(("call ", "phone: ", "cell ", "text me at ", "电话")), chance.choice(text), ""


def ssn(chance: Chance) -> tuple[str, str, str]:
    number = f"{chance.randrange(1, 665):03}-{chance.randrange(1, 100):02}-{chance.randrange(1, 10_000):04}"
    return chance.choice(("SSN ", "SSN: ", "social security number ", "my SSN is ")), number, ""


def api_key(chance: Chance) -> tuple[str, str, str]:
    letters = string.ascii_letters + DIGITS
    prefix, length = chance.choice(
        (
            ("sk-", 48),
            ("sk-proj-", 60),
            ("sk-ant-api03-", 80),
            ("ghp_", 36),
            ("AIza", 35),
            ("hf_", 34),
            ("LTAI", 20),
            ("glpat-", 20),
        )
    )
    return (
        chance.choice(("key=", "密钥：", "API key: ", "使用", "export KEY=")),
        prefix + "".join(chance.choices(letters, k=length)),
        "",
    )


PLANTED: dict[str, Callable[[Chance], tuple[str, str, str]]] = {
    x.__name__: x
    for x in (
        resident_id,
        mobile,
        landline,
        bank_card,
        passport,
        plate,
        uscc,
        email,
        ip,
        wechat,
        qq,
        us_phone,
        ssn,
        api_key,
    )
}


def planted(kind: str, count: int) -> Iterator[tuple[str, int, int]]:
    """(text, start, end): sentences with one value each."""
    chance = Chance(f"{kind} 1")
    for _ in range(count):
        before, value, after = PLANTED[kind](chance)
        lead, tail = chance.choice((BEFORE_ZH, BEFORE_EN)), chance.choice((AFTER_ZH, AFTER_EN))
        head = chance.choice(lead) + before
        yield f"{head}{value}{after}{chance.choice(tail)}", len(head), len(head) + len(value)


def near_id(chance: Chance) -> str:
    """A resident ID with a wrong check digit."""
    number = normalize("NFKC", resident_id(chance)[1]).replace(" ", "").replace("-", "").upper()
    wrong = chance.choice([x for x in DIGITS if x != number[-1]])
    return f"编码{number[:-1]}{wrong}"


def near_card(chance: Chance) -> str:
    """A bank card with a wrong check digit and no word before it."""
    number = "6222" + "".join(chance.choices(DIGITS, k=15))
    total = sum(int(x) if i % 2 == 0 else sum(divmod(2 * int(x), 10)) for i, x in enumerate(reversed(number)))
    return f"转{number if total % 10 else number[:-1] + str((int(number[-1]) + 1) % 10)}"


LOOK_ALIKES: dict[str, Callable[[Chance], str]] = {
    "order number": lambda c: (
        c.choice(("订单号", "运单号：", "流水号", "order no. ", "快递单号", "单号")) + digits(c, c.randint(9, 20))
    ),
    "order number like a mobile": lambda c: c.choice(("订单号", "订单编号：", "order #", "单号")) + "138" + digits(c, 8),
    "16 digits": lambda c: f"参数{digits(c, 16)}",
    "18 digits": lambda c: f"参数{digits(c, 18)}",
    "19 digits, snowflake": lambda c: f"消息{c.randrange(10**18, 2 * 10**18)}",
    "timestamp, milliseconds": lambda c: f"时间{c.randrange(1_300_000_000_000, 1_900_000_000_000)}",
    "timestamp, seconds": lambda c: f"时间{c.randrange(1_300_000_000, 1_900_000_000)}",
    "date and time": lambda c: (
        f"于20{c.randrange(10, 30)}{c.randrange(1, 13):02}{c.randrange(1, 29):02}{c.randrange(240000):06}归档"
    ),
    "amount": lambda c: (
        c.choice(("金额", "¥", "合计", "")) + f"1{c.choice('3589')}{digits(c, 9)}" + c.choice((".00元", "元", ".50"))
    ),
    "count with a unit": lambda c: f"约1{c.choice('3589')}{digits(c, 9)}" + c.choice(("人", "次", "米", "字节", "个")),
    "digits in a word": lambda c: f"型{c.choice('ABXZ')}1{c.choice('3589')}{digits(c, 9)}{c.choice(('', 'B'))}款",
    "hash": lambda c: hashlib.sha1(str(c.random()).encode()).hexdigest()[: c.choice((32, 40))],
    "uuid": lambda c: str(uuid.UUID(int=c.getrandbits(128))),
    "resident ID, wrong check digit": near_id,
    "bank card, wrong check digit": near_card,
    "11 digits of no network": lambda c: (
        f"编1{c.choice('012')}{digits(c, 9)}" if c.random() < 0.5 else f"编{c.choice('2345')}{digits(c, 10)}"
    ),
    "version": lambda c: f"版本{c.randrange(9)}.{c.randrange(20)}.{c.randrange(20)}.{c.randrange(99)}",
    "private address": lambda c: f"IP 192.168.{c.randrange(255)}.{c.randrange(255)}",
    "date": lambda c: (
        f"20{c.randrange(10, 30)}-{c.randrange(1, 13):02}-{c.randrange(1, 29):02} {c.randrange(24):02}:{c.randrange(60):02}"
    ),
    "ISBN": lambda c: f"ISBN 978-7-{c.randrange(100, 999)}-{c.randrange(10000, 99999)}-{c.randrange(10)}",
    "sum": lambda c: f"{digits(c, 10)} + {digits(c, 9)} = ?",
    "list": lambda c: "、".join(digits(c, c.randint(1, 4)) for _ in range(8)),
    "decimal": lambda c: f"{c.randrange(180)}.{digits(c, 11)}, 0.1{c.choice('3589')}{digits(c, 9)}",
    "package": lambda c: f"react@{c.randrange(20)}.{c.randrange(9)}.{c.randrange(9)} @user{c.randrange(99)}",
    "hotline": lambda c: (
        c.choice(("拨打10086", "95588", "400-820-", "客服12345，")) + (digits(c, 4) if c.random() < 0.5 else "")
    ),
    "product": lambda c: (
        c.choice(("QQ音乐", "微信 Android ", "WeChat Pay ", "QQ 浏览器 ", "微信小程序 ")) + f"{c.randrange(20)}.0"
    ),
    "placeholder": lambda c: c.choice(
        ("api_key=YOUR_API_KEY_HERE_12345", "sk-xxxxxxxxxxxxxxxxxxxxxxxx", "password: ****************")
    ),
    "identifier in code": lambda c: f"token = get_access_token_from_config{c.randrange(99)}()",
    "licence": lambda c: f"京ICP备{digits(c, 8)}号 粤B2-{digits(c, 8)}",
}


def look_alikes(count: int) -> Iterator[tuple[str, str]]:
    """(family, text): all families in equal shares."""
    chance, families = Chance(2), list(LOOK_ALIKES)
    for i in range(count):
        family = families[i % len(families)]
        tail = chance.choice((chance.choice(AFTER_ZH), chance.choice(AFTER_EN)))
        yield family, chance.choice(BEFORE_ZH) + LOOK_ALIKES[family](chance) + tail
