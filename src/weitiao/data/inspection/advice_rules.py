"""Each thing that there may be to do: when it is proposed, what is said, what helps."""

from collections.abc import Iterator
from dataclasses import replace

from weitiao.core.messages import Message, joined
from weitiao.data.chat.turn_order import ODDITIES
from weitiao.data.inspection.advice import BY_HAND, Advice, Excerpt, Findings, Level
from weitiao.data.inspection.classes import FEW, UNBALANCED
from weitiao.data.inspection.occurrences import Occurrences

MAX_BAD = 0.01  # of a recipe, by default
NOTICED, FREQUENT = 0.002, 0.05  # shares from which a cleaner is proposed, and from which an opening is
MAX_NAMED = 5
ROW_RULES = ("as_an_ai", "quality")  # that leave rows out and change no text
AS_FOUND = Message("nothing to do, if that is as it should be")
FIRST = ("leaked", "secrets")  # whatever their share is


def advice(facts: Findings) -> list[Advice]:
    """Everything that there is to do, the most valuable first."""
    parts = (
        _leaks(facts),
        _private(facts),
        _bad_rows(facts),
        _labels(facts),
        _copies(facts),
        _answers(facts),
        _model(facts),
        _cleanable(facts),
        _looks(facts),
    )
    order: list[Level] = ["must", "should", "look"]

    def key(x: Advice) -> tuple[int, bool, float]:
        return order.index(x.level), x.code not in FIRST, -x.share

    items = sorted((x for part in parts for x in part), key=key)
    if facts.has_offsets:
        return [replace(x, cleaner="", remedy=BY_HAND) if x.cleaner not in ("", *ROW_RULES) else x for x in items]
    return items


def _leaks(facts: Findings) -> Iterator[Advice]:
    leaks = facts.answers.get("leakage")
    if leaks and leaks["leaked"]:
        names = {
            "row": Message("{n:,} the same"),
            "near": Message("{n:,} nearly the same"),
            "input": Message("{n:,} with the same question"),
            "inside": Message("{n:,} inside a longer text"),
        }
        kinds = joined(", ", [Message(names[kind], n=n) for kind, n in leaks["kinds"].items() if n])
        yield Advice(
            "leaked",
            "must",
            Message("rows to evaluate on are in the data ({kinds}): their score would say what was memorized", kinds=kinds),
            leaks["leaked"],
            leaks["n"],
            Message(
                "take the training rows out: --json lists their lines. validation: 0.05 in the recipe splits by content"
            ),
            listed=[row for _, _, row in leaks["pairs"]],
        )


def _private(facts: Findings) -> Iterator[Advice]:
    personal = facts.answers["personal"]
    for code, rule, what in (
        ("secrets", "secrets", Message("rows hold keys, tokens or passwords: a model learns them by heart and tells them")),
        ("personal", "personal_data", Message("rows hold personal data: numbers, addresses and accounts of people")),
    ):
        rows: Occurrences = personal[code]
        if rows.rows:
            kinds = [x for x in personal["kinds"] if x["certain"] and (x["kind"] == "api_key") == (code == "secrets")]
            texts = [(row, text) for x in kinds for row, text in x["examples"]]
            yield Advice(
                code, "must", what, rows.rows, facts.total, facts.clean(rule), listed=rows.listed, texts=texts, cleaner=rule
            )


def _bad_rows(facts: Findings) -> Iterator[Advice]:
    total = facts.total + facts.bad
    if facts.bad:
        is_too_many = facts.bad > MAX_BAD * total
        what = Message("rows cannot be used; training stops at more than {allowed:.0%}", allowed=MAX_BAD)
        remedy = Message(
            "mend them where they are, or max_bad_fraction: {share:.2g} in the recipe",
            share=min(facts.bad / total * 1.1, 1),
        )
        yield Advice(
            "bad_rows",
            "must" if is_too_many else "look",
            what if is_too_many else Message("rows cannot be used, and are left out"),
            facts.bad,
            total,
            remedy if is_too_many else Message("mend them where they are"),
            texts=facts.bad_examples,
        )
    if lost := facts.answers["scripts"]["lost"].rows:
        what = Message("rows have characters that were lost when the text was decoded (�, private ones)")
        listed = facts.answers["scripts"]["lost"].listed
        yield Advice("lost", "should", what, lost, facts.total, facts.clean("quality"), listed=listed, cleaner="quality")


def _labels(facts: Findings) -> Iterator[Advice]:
    conflicts, classes = facts.answers["conflicts"], facts.answers["classes"]
    if rows := conflicts["labels"].rows:
        yield Advice(
            "conflicts",
            "must",
            Message(
                "rows have a text that occurs with another label too ({n:,} texts)", n=conflicts["label_groups"]["groups"]
            ),
            rows,
            facts.total,
            Message("decide on one label for each text: --json lists the lines"),
            listed=conflicts["labels"].listed,
            groups=conflicts["label_groups"]["examples"],
            excerpt="label",
        )
    if groups := classes["spellings"]:
        named = joined("; ", [", ".join(f"{name!r} ({n:,})" for name, n in group) for group in groups[:MAX_NAMED]])
        rows = sum(n for group in groups for _, n in sorted(group, key=lambda x: -x[1])[1:])
        what = Message("rows spell their class in another way than others: {groups}", groups=named)
        yield Advice("class_names", "must", what, rows, classes["n"], Message("write each class in one way"))
    if classes["missing"]:
        named = ", ".join(repr(name) for name, _ in classes["missing"])
        what = Message("rows have a class that usually means that there is none: {classes}", classes=named)
        rows = sum(n for _, n in classes["missing"])
        yield Advice("missing_class", "should", what, rows, classes["n"], Message("take these rows out, if it does"))
    yield from _wrong_labels(facts)
    if classes["num_rare"] and classes["classes"] > 1:
        named = ", ".join(f"{name!r} ({n})" for name, n in classes["rare"][:MAX_NAMED])
        what = Message(
            "rows are of {n} classes with fewer than {few} rows each: {classes}",
            n=classes["num_rare"],
            few=FEW,
            classes=named,
        )
        rows = sum(n for _, n in classes["rare"])
        yield Advice("rare_classes", "should", what, rows, classes["n"], Message("collect more of them, or join classes"))
    elif classes["ratio"] >= UNBALANCED:
        (most, n), (least, few) = classes["counts"][0], classes["counts"][-1]
        what = Message(
            "rows are of class {most!r}, {ratio:.0f} times as many as of {least!r} ({few:,})",
            most=most,
            least=least,
            few=few,
            ratio=classes["ratio"],
        )
        weights = "objective: {name: classification, class_weights: balanced}"
        remedy = Message("collect more of them, or join classes") if classes["closed"] else weights
        yield Advice("imbalance", "should", what, n, classes["n"], remedy)


def _wrong_labels(facts: Findings) -> Iterator[Advice]:
    wrong = facts.answers.get("wrong_labels")
    if wrong is None or not wrong["n"] or not wrong["rows"]:
        return
    pairs = ", ".join(f"{a!r} → {b!r} ({n:,})" for a, b, n in wrong["pairs"][:MAX_NAMED])
    what = Message("labels are likely wrong, by a model of the other rows: {pairs}", pairs=pairs)
    listed = [x["row"] for x in wrong["worst"]]
    yield Advice(
        "wrong_labels",
        "should",
        what,
        wrong["rows"],
        wrong["n"],
        Message("read them, the surest first: the page and --json list them"),
        listed=listed,
        excerpt="label",
        sampled=wrong["total"] > wrong["n"] + wrong["left_out"],
    )


def _copies(facts: Findings) -> Iterator[Advice]:
    repetition = facts.answers["repetition"]
    exact, near = repetition["exact"], repetition["near"]
    if exact.rows:
        what = Message("rows are copies of an earlier row: they are learnt twice, and may be on both sides of a split")
        yield Advice(
            "exact_duplicates",
            "should",
            what,
            exact.rows,
            facts.total,
            facts.deduplicate("exact"),
            listed=exact.listed,
            deduplicate="exact",
        )
    if near.rows:
        what = Message(
            "rows are nearly the same as an earlier one (similarity ≥ {similarity})", similarity=repetition["similarity"]
        )
        groups = [x["examples"] for x in repetition["clusters"] if x["exact"] < x["rows"] - 1][:2]
        yield Advice(
            "near_duplicates",
            "should",
            what,
            near.rows,
            facts.total,
            facts.deduplicate("near"),
            listed=near.listed,
            groups=groups,
            deduplicate="near",
        )
    if other := repetition["other_label"].rows:
        what = Message("rows are nearly the same as one with another label")
        yield Advice(
            "near_conflicts",
            "should",
            what,
            other,
            facts.total,
            Message("look whether the label depends on what differs"),
            listed=repetition["other_label"].listed,
            excerpt="label",
        )


ANSWERS: dict[str, tuple[Level, Message, Excerpt]] = {
    "cut": ("should", Message("answers seem to be cut off: a model learns to stop in the middle"), "end"),
    "placeholder": ("should", Message("answers are placeholders (null, TODO, 暂无)"), "row"),
    "no_words": ("should", Message("answers have no letter and no digit"), "row"),
    "copy": ("should", Message("answers repeat the question word for word"), "row"),
    "loop": ("should", Message("answers say one phrase again and again"), "end"),
    "next_turn": ("should", Message("answers go on with the user's next turn: the model would not stop"), "end"),
    "other_model": ("should", Message("answers let another model speak of itself (As an AI language model ...)"), "answer"),
    "refusal": ("look", Message("answers refuse: as many as are meant to?"), "answer"),
}  # fmt: skip


def _answers(facts: Findings) -> Iterator[Advice]:
    odd = facts.answers["answers"]
    for code, (level, what, cut) in ANSWERS.items():
        rows: Occurrences = odd[code]
        if rows.rows:
            rule = {"other_model": "as_an_ai", "loop": "quality"}.get(code, "")
            remedy = facts.clean(rule) if rule else BY_HAND
            yield Advice(code, level, what, rows.rows, odd["n"], remedy, listed=rows.listed, excerpt=cut, cleaner=rule)
    for x in facts.answers["openings"]["frequent"]:
        if x["rows"] >= FREQUENT * facts.answers["openings"]["n"]:
            what = Message("answers begin alike ({n:,} different answers): every answer will", n=x["answers"])
            yield Advice(
                "opening",
                "look",
                what,
                x["rows"],
                facts.answers["openings"]["n"],
                Message("take the phrase out, if it is none of the task"),
                listed=[x["example"]],
                excerpt="answer",
            )


def _model(facts: Findings) -> Iterator[Advice]:
    model = facts.answers.get("model")
    if not model:
        return
    if model["over_limit"]:
        what = Message("rows are longer than the {limit:,} tokens that the model takes", limit=model["limit"])
        yield Advice(
            "too_long", "should", what, model["over_limit"], model["n"], f"max_length: {model['limit']}", sampled=True
        )
    chat = model["chat"]
    if not chat:
        return
    if not chat["template"]:
        what = Message("rows are conversations, and the model has no chat template")
        yield Advice("no_template", "must", what, facts.total, facts.total, "chat_template: chatml")
        return
    if rows := chat["without_stop"].rows:
        what = Message(
            "rows have an answer that does not end with a stop token that carries loss: the model would not stop"
        )
        yield Advice(
            "no_stop",
            "must",
            what,
            rows,
            chat["rendered"],
            Message("choose another template in the recipe"),
            listed=chat["without_stop"].listed,
            sampled=True,
        )
    if rows := chat["refused"].rows:
        what = Message("rows do not fit the chat template: {reason}", reason=chat["reason"])
        yield Advice("refused", "must", what, rows, chat["rendered"], listed=chat["refused"].listed, sampled=True)
    for x in chat["findings"]:
        if x["level"] != "fine":
            yield Advice(
                "template_content",
                "must",
                Message.from_json(x["message"]),
                0,
                chat["rendered"],
                Message("choose another template in the recipe"),
            )


def _cleanable(facts: Findings) -> Iterator[Advice]:
    cleanable = facts.answers["cleanable"]
    names = {
        "invisible": Message("rows have characters that nobody sees"),
        "mojibake": Message("rows were decoded with the wrong encoding, which can be undone"),
        "unicode": Message("rows write characters in several ways (full-width letters, ligatures)"),
        "html": Message("rows have HTML in them"),
        "boilerplate": Message("rows have lines of a page or a mail around them"),
        "repeated_text": Message("rows repeat a line or a character without a break"),
    }
    for x in cleanable["table"]:
        rows = x["rows"]
        if x["share"] >= NOTICED:
            listed = cleanable["examples"][x["name"]].listed
            yield Advice(
                "cleanable",
                "should",
                names[x["name"]],
                rows,
                cleanable["n"],
                facts.clean(x["name"]),
                listed=listed,
                cleaner=x["name"],
                sampled=True,
            )


def _looks(facts: Findings) -> Iterator[Advice]:
    markers, turns = facts.answers["markers"], facts.answers["turns"]
    if rows := markers["rows"].rows:
        named = ", ".join(f"{name} ({n:,})" for name, n in markers["markers"][:MAX_NAMED])
        what = Message("rows spell marks of a chat template: {markers}. They are learnt as text", markers=named)
        yield Advice(
            "markers",
            "should",
            what,
            rows,
            facts.total,
            Message("turn them into messages; or parse_special_tokens: true for the source, if they are meant"),
            listed=markers["rows"].listed,
        )
    if rows := turns["odd"].rows:
        named = joined("; ", [Message(ODDITIES[kind], n=n) for kind, n in turns["kinds"].items()])
        yield Advice(
            "turn_order",
            "look",
            Message("conversations do not alternate: {kinds}", kinds=named),
            rows,
            facts.total,
            listed=turns["odd"].listed,
        )
    conflicts = facts.answers["conflicts"]
    if rows := conflicts["answers"].rows:
        what = Message(
            "rows have a question that is answered in another way too ({n:,} questions)",
            n=conflicts["answer_groups"]["groups"],
        )
        yield Advice(
            "several_answers",
            "look",
            what,
            rows,
            facts.total,
            Message("keep the better answer, if they contradict"),
            groups=conflicts["answer_groups"]["examples"],
            listed=conflicts["answers"].listed,
        )
    for x in facts.columns:
        if x.level != "fine":
            yield Advice(
                "columns",
                "must" if x.level == "error" else "look",
                Message(x.message),
                0,
                facts.total,
                "data: {columns: {prompt: ..., completion: ...}}" if x.name == "columns" else AS_FOUND,
            )
