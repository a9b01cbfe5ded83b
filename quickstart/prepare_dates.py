"""Dates as people write them, and as machines do. Run: python quickstart/prepare_dates.py

    the 3rd of May 2024 -> 2024-05-03        二〇二四年五月三日 -> 2024-05-03        5/3/24 (US) -> 2024-05-03

Made by rules, since no corpus of this kind ships in a package: days from 1950 to 2049 by the seed, each in one of twelve
English or Chinese ways. A day is either learnt or held out, never both. So it proves that sequence to sequence learns, not
that it is good at what people really write.

Writes quickstart/data/dates_{train,test}.jsonl (columns source and target); the same bytes every time.
"""

import datetime
import json
import random
from collections.abc import Callable
from pathlib import Path

DATA = Path(__file__).parent / "data"
TRAIN, TEST = 6000, 500
MONTHS = [datetime.date(2000, month, 1).strftime("%B") for month in range(1, 13)]
DIGITS = "〇一二三四五六七八九"


def main() -> None:
    """Make the files."""
    dice, first = random.Random(0), datetime.date(1950, 1, 1)
    days = dice.sample(range(36_524), TRAIN + TEST)
    rows = [row(first + datetime.timedelta(day), dice) for day in days]
    DATA.mkdir(exist_ok=True)
    for name, some in (("train", rows[TEST:]), ("test", rows[:TEST])):
        text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in some)
        (DATA / f"dates_{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{TRAIN:,} dates to learn from, {TEST} other days held out")


def row(day: datetime.date, dice: random.Random) -> dict[str, str]:
    """A day in one of the ways, and in ISO 8601."""
    return {"source": dice.choice(WAYS)(day), "target": day.isoformat()}


def _chinese(number: int) -> str:
    """Of 1 to 31: 二十三."""
    tens, ones = divmod(number, 10)
    return ("" if tens < 2 else DIGITS[tens]) + ("十" if tens else "") + (DIGITS[ones] if ones else "")


def _ordinal(number: int) -> str:
    end = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{end}"


WAYS: tuple[Callable[[datetime.date], str], ...] = (
    lambda d: f"{MONTHS[d.month - 1]} {d.day}, {d.year}",
    lambda d: f"{d.day} {MONTHS[d.month - 1][:3]} {d.year}",
    lambda d: f"the {_ordinal(d.day)} of {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{d:%a}, {d.day} {MONTHS[d.month - 1]} {d.year}",
    lambda d: f"{d.month}/{d.day}/{d.year} (US)",
    lambda d: f"{d.day}/{d.month}/{d.year} (UK)",
    lambda d: f"{d.day}.{d.month}.{d.year}",
    lambda d: f"{d:%Y%m%d}",
    lambda d: f"{d.year}年{d.month}月{d.day}日",
    lambda d: f"{''.join(DIGITS[int(x)] for x in str(d.year))}年{_chinese(d.month)}月{_chinese(d.day)}日",
    lambda d: f"公元{d.year}年{_chinese(d.month)}月{d.day}号",
    lambda d: f"{_ordinal(d.day)} day of month {d.month} in {d.year}",
)


if __name__ == "__main__":
    main()
