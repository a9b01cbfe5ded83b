"""The page of `weitiao data inspect`: what to do first, then what the rows hold."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from weitiao.core.messages import Message, joined
from weitiao.evaluate.report.page import in_each_language, write_page

SHOWN_LINES = 200  # line numbers of one thing to do, by file
SHOWN_WORST = 50  # labels that are likely wrong
SHOWN_PAIRS = 50
LABELS = {
    "title": Message("Inspection of data"),
    "advice": Message("What to do first"),
    "nothing": Message("Nothing to do was found."),
    "combined": Message("All that can be cleaned, in one command:"),
    "contents": Message("Contents"),
    "lines": Message("lines"),
    "method": Message(
        "Texts are shown short and without personal data. Duplicates: Jaccard similarity of n-grams; letter case, width "
        "and traditional characters do not count. Brackets are 95 % intervals (Wilson 1927) where rows are a sample."
    ),
}
KINDS = {"must": "worse", "should": "warning", "look": ""}
QUANTILES: dict[float, Message] = {0: Message("shortest"), 0.5: Message("median"), 1: Message("longest")}
LEAKS = {
    "row": Message("the same row"),
    "near": Message("nearly the same row"),
    "input": Message("the same question with another answer"),
    "inside": Message("the question stands inside a longer text"),
}
SCRIPTS = {
    "none": Message("no letters"), "latin": Message("Latin"), "han": Message("Chinese characters"),
    "kana": Message("Japanese"), "hangul": Message("Korean"), "cyrillic": Message("Cyrillic"), "arabic": Message("Arabic"),
    "thai": Message("Thai"), "devanagari": Message("Devanagari"), "greek": Message("Greek"), "hebrew": Message("Hebrew"),
    "other": Message("another script"), "lost": Message("lost characters"),
}  # fmt: skip
ANSWERS = {
    "cut": Message("seem to be cut off"), "placeholder": Message("are placeholders"), "no_words": Message("have no letter"),
    "copy": Message("repeat the question"), "loop": Message("repeat a phrase"), "refusal": Message("refuse"),
    "other_model": Message("another model speaks of itself"), "next_turn": Message("go on with the next turn"),
}  # fmt: skip

Table = dict[str, Any]
Chapter = dict[str, Any]


def write_inspection_report(record: Mapping[str, Any], file: Path) -> Path:
    """Draw a record into one file.

    Args:
        record: as pipeline/inspection_record.py makes it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_page(file, "inspection.html.jinja", lambda: contents(record))


def contents(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows, in the reader's language."""
    chapters = [x for x in _chapters(record) if any(t["rows"] for t in x["tables"]) or x["groups"] or x["notes"]]
    levels = {x["level"] for x in record["advice"]}
    return {
        "label": LABELS,
        "tab": in_each_language(LABELS["title"]),
        "files": record["files"],
        "rows_line": Message("{rows:,} rows: {accepted:,} can be used, {bad:,} cannot", **record["rows"]),
        "worst": "worse" if "must" in levels else "" if levels else "better",
        "advice": [_advice(x) for x in record["advice"]],
        "command": record["command"],
        "sections": [(x["id"], x["title"], True) for x in chapters],
        "chapters": chapters,
    }


def _advice(x: Mapping[str, Any]) -> dict[str, Any]:
    lines = [(file, ", ".join(map(str, rows[:SHOWN_LINES])) + ("…" if len(rows) > SHOWN_LINES else ""))
             for file, rows in x["lines"].items()]  # fmt: skip
    return {
        "kind": KINDS[x["level"]],
        "level": x["level_name"],
        "count": _count(x) if x["rows"] else "",
        "what": x["what"],
        "remedy": x["remedy"],
        "remedy_is_command": isinstance(x["remedy"], str),
        "examples": x["examples"],
        "lines": lines,
    }


def _count(x: Mapping[str, Any]) -> Message:
    return Message("{n:,} of {total:,} ({share}): ", n=x["rows"], total=x["of"], share=_share(x))


def _share(x: Mapping[str, Any]) -> str:
    interval = "" if x["low"] == x["high"] else f" [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"
    return f"{100 * x['share']:.1f} %{interval}"


def _chapter(name: str, title: Message, tables: Sequence[Table] = (), notes: Sequence[Message] = (),
             groups: Sequence[dict[str, Any]] = ()) -> Chapter:  # fmt: skip
    return {"id": name, "title": title, "tables": list(tables), "notes": list(notes), "groups": list(groups)}


def _table(head: Sequence[Any], rows: Sequence[Sequence[Any]], title: Message | str = "", figures: bool = True) -> Table:
    return {"head": list(head), "rows": [list(x) for x in rows], "title": title, "figures": figures}


def _bar(share: float) -> Markup:
    """A share as a bar beside its number."""
    width = 100 * min(max(share, 0), 1)
    return Markup(
        '<svg class="counts" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect x="0" y="0" width="{width:.2f}" height="6" class="bin"/></svg>'
    )


def _chapters(record: Mapping[str, Any]) -> Iterator[Chapter]:
    yield _rows(record)
    yield _lengths(record)
    if record.get("model"):
        yield _model(record["model"])
    yield _languages(record)
    yield _duplicates(record["repetition"])
    yield _classes(record)
    yield _answers(record)
    yield _personal(record["personal"])
    if record.get("leakage"):
        yield _leaks(record["leakage"])


def _rows(record: Mapping[str, Any]) -> Chapter:
    files = [
        (
            x["file"],
            x["columns"],
            f"{x['rows']:,}",
            f"{x['accepted']:,}",
            f"{x['bad']:,}",
            _bar(x["accepted"] / max(x["rows"], 1)),
        )
        for x in record["files"]
    ]
    head = (Message("file"), Message("columns"), Message("rows"), Message("can be used"), Message("cannot"), "")
    total = sum(n for _, n in record["turns"]["counts"])
    turns = [
        (f"{n}", f"{rows:,}", f"{100 * rows / total:.1f} %", _bar(rows / total))
        for n, rows in record["turns"]["counts"][:20]
    ]
    bad = []
    for x in record["bad"]:
        title = Message("{code}: {n:,} rows that cannot be used", code=x["code"], n=x["rows"])
        bad.append({"title": title, "examples": x["examples"]})
    tables = [_table(head, files, figures=False)]
    for x in record["files"]:
        for name, counts in x["tasks"].items():
            n = sum(rows for _, rows in counts)
            values = [(value, f"{rows:,}", f"{100 * rows / n:.1f} %", _bar(rows / n)) for value, rows in counts]
            title = Message("Rows of {file} by {column}", file=x["file"], column=name)
            tables.append(_table((name, Message("rows"), Message("share"), ""), values, title))
    if len(turns) > 1 or (turns and turns[0][0] != "1"):
        tables.append(_table((Message("turns"), Message("rows"), Message("share"), ""), turns, Message("Turns")))
    return _chapter("rows", Message("Rows and turns"), tables, groups=bad)


def _lengths(record: Mapping[str, Any]) -> Chapter:
    tables = []
    for name, title in (("prompt", Message("Characters of the prompt")), ("answer", Message("Characters of the answer"))):
        if x := record["lengths"][name]:
            tables += _distribution(x, title)
    return _chapter("lengths", Message("Lengths in characters"), tables)


def _distribution(x: Mapping[str, Any], title: Message) -> list[Table]:
    quantiles = [QUANTILES.get(q, f"{100 * q:g} %") for q, _ in x["quantiles"]]
    bins = [(f"{low:,} – {2 * low - 1:,}", f"{n:,}", f"{100 * n / x['n']:.1f} %", _bar(n / x["n"])) for low, n in x["bins"]]
    return [
        _table([*quantiles, Message("sum")], [[*(f"{n:,}" for _, n in x["quantiles"]), f"{x['sum']:,}"]], title),
        _table((Message("length"), Message("rows"), Message("share"), ""), bins),
    ]


def _model(x: Mapping[str, Any]) -> Chapter:
    notes = [
        Message(
            "{name}: {n:,} rows of {total:,} were encoded; {rate:.2f} characters a token",
            name=x["name"],
            n=x["n"],
            total=x["total"],
            rate=x["characters_per_token"],
        )  # fmt: skip
    ]
    if x["limit"]:
        notes.append(Message("The model takes {limit:,} tokens.", limit=x["limit"]))
    if x["chat"] and x["chat"]["template"]:
        notes.append(
            Message(
                "The chat template adds about {extra:.0f} tokens a row. Of {turns:,} answers in {n:,} rows, those of "
                "{missing:,} rows do not end with a stop token.",
                extra=x["chat"]["overhead"],
                turns=x["chat"]["turns"],
                n=x["chat"]["rendered"],
                missing=x["chat"]["without_stop"]["rows"],
            )  # fmt: skip
        )
    if x["special"]["rows"]:
        notes.append(Message("{n:,} rows spell special tokens of this model.", n=x["special"]["rows"]))
    head = (
        "max_length",
        Message("rows that lose their end"),
        Message("share"),
        Message("tokens that are lost"),
        "",
    )
    rows = [
        (f"{y['max_length']:,}", f"{y['rows']:,}", _share(y), f"{100 * y['tokens']:.1f} %", _bar(y["share"]))
        for y in x["cut_offs"]
    ]
    tables = [_table(head, rows, Message("What a cut-off costs")), *_distribution(x["tokens"], Message("Tokens of a row"))]
    return _chapter("tokens", Message("Tokens and chat template"), tables, notes)


def _languages(record: Mapping[str, Any]) -> Chapter:
    scripts, total = record["scripts"], max(sum(record["scripts"]["main"].values()), 1)
    rows = [(SCRIPTS[name], f"{n:,}", f"{100 * n / total:.1f} %", _bar(n / total)) for name, n in scripts["main"].items()]
    tables = [_table((Message("script"), Message("rows"), Message("share"), ""), rows)]
    notes = [Message("{n:,} rows have a second script to at least a fifth.", n=scripts["mixed"])]
    if scripts["traditional"]:
        notes.append(
            Message(
                "{n:,} of {total:,} Chinese rows are in traditional characters.",
                n=scripts["traditional"],
                total=scripts["han"],
            )
        )
    if record.get("languages"):
        languages = [
            (x["name"] or Message("cannot be told"), f"{x['rows']:,}", _share(x), _bar(x["share"]))
            for x in record["languages"]["table"][:20]
        ]
        title = Message("Languages of a sample of {n:,} rows", n=record["languages"]["n"])
        tables.append(_table((Message("language"), Message("rows"), Message("share"), ""), languages, title))
    return _chapter("languages", Message("Languages and scripts"), tables, notes)


def _duplicates(x: Mapping[str, Any]) -> Chapter:
    notes = [
        Message(
            "{exact:,} rows are the same as an earlier one, {near:,} more nearly the same.",
            exact=x["exact"]["rows"],
            near=x["near"]["rows"],
        )
    ]
    if x["capped"]:
        notes.append(Message("{n:,} rows were not compared with all others, since very many agreed.", n=x["capped"]))
    groups = [
        {
            "title": Message("{n:,} rows, {exact:,} of them copies of the first", n=y["rows"], exact=y["exact"]),
            "examples": y["examples"],
        }
        for y in x["clusters"]
    ]
    return _chapter("duplicates", Message("Duplicates"), (), notes, groups)


def _classes(record: Mapping[str, Any]) -> Chapter:
    x, conflicts, wrong = record["classes"], record["conflicts"], record.get("wrong_labels")
    rows = [(name, f"{n:,}", f"{100 * n / max(x['n'], 1):.1f} %", _bar(n / max(x["n"], 1))) for name, n in x["counts"]]
    tables = [_table((Message("class"), Message("rows"), Message("share"), ""), rows)]
    groups = [
        {"title": Message("One text, several labels"), "examples": y} for y in conflicts["label_groups"]["examples"]
    ] + [{"title": Message("One question, several answers"), "examples": y} for y in conflicts["answer_groups"]["examples"]]
    notes = []
    if wrong and wrong["n"]:
        notes.append(
            Message(
                "Likely wrong labels: {rows:,} of {n:,} rows, by confident learning (Northcutt et al. 2021) with a model "
                "of n-grams that had not seen the row (right on {accuracy:.1%}). It looks at words, not sense: read them.",
                rows=wrong["rows"],
                n=wrong["n"],
                accuracy=wrong["accuracy"],
            )  # fmt: skip
        )
        worst = [(y["where"], y["text"], y["suggested"], f"{y['margin']:.2f}") for y in wrong["worst"][:SHOWN_WORST]]
        head = (Message("row"), Message("text → label"), Message("more likely"), Message("margin"))
        tables.append(_table(head, worst, Message("Likely wrong labels, the surest first"), figures=False))
    return _chapter("classes", Message("Labels and contradictions"), tables, notes, groups)


def _answers(record: Mapping[str, Any]) -> Chapter:
    x, openings = record["answers"], record["openings"]
    rows = [(ANSWERS[kind], f"{x[kind]['rows']:,}", f"{100 * x[kind]['rows'] / max(x['n'], 1):.1f} %") for kind in ANSWERS]
    tables, notes = [], []
    if x["n"]:
        tables.append(_table((Message("answers that"), Message("rows"), Message("share")), rows))
        if x["same_length"]:
            notes.append(
                Message(
                    "{rows:,} answers have exactly {characters:,} characters, the longest there are: a limit cut them.",
                    **x["same_length"],
                )
            )
    frequent = [
        (y["example"]["text"], f"{y['rows']:,}", f"{100 * y['rows'] / max(openings['n'], 1):.1f} %")
        for y in openings["frequent"]
    ]
    tables.append(
        _table(
            (Message("opening"), Message("rows"), Message("share")), frequent, Message("Repeated openings"), figures=False
        )
    )
    markers = [(name, f"{n:,}") for name, n in record["markers"]["markers"]]
    tables.append(
        _table((Message("mark of a chat template"), Message("rows")), markers, Message("Marks of chat templates in texts"))
    )
    return _chapter("answers", Message("Answers"), tables, notes)


def _personal(x: Mapping[str, Any]) -> Chapter:
    rows = [
        (
            y["kind"],
            f"{y['rows']:,}",
            Message("certain") if y["certain"] else Message("perhaps"),
            y["examples"][0]["text"] if y["examples"] else "",
        )
        for y in x["kinds"]
    ]
    head = (Message("kind"), Message("rows"), "", Message("example, masked"))
    notes = [] if rows else [Message("No personal data and no secrets were found.")]
    return _chapter("personal", Message("Personal data and secrets"), [_table(head, rows, figures=False)], notes)


def _leaks(x: Mapping[str, Any]) -> Chapter:
    kinds = [(LEAKS[kind], f"{n:,}", f"{100 * n / max(x['n'], 1):.1f} %") for kind, n in x["kinds"].items()]
    pairs = [(y["held_out"], y["where"], LEAKS[y["kind"]]) for y in x["pairs"][:SHOWN_PAIRS]]
    tables = [
        _table((Message("how"), Message("rows to evaluate on"), Message("share")), kinds),
        _table((Message("row to evaluate on"), Message("row of the data"), Message("how")), pairs, figures=False),
    ]
    notes = [joined(" ", [Message("{leaked:,} of {n:,} rows to evaluate on are in the data.", leaked=x["leaked"], n=x["n"]),
                          Message("Rows in other words are not found.")])]  # fmt: skip
    return _chapter("leaks", Message("Rows to evaluate on"), tables, notes)
