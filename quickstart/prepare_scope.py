"""Questions that the quickstart's topics do not cover: chatterbot-corpus (BSD). Run: python quickstart/prepare_scope.py

Writes quickstart/data/scope_general.jsonl (help desk, greetings, small talk, food), for `weitiao data out-of-scope`, and
scope_unseen.jsonl (money, politics, humor, gossip, computers): kinds of question that nothing is trained on, each once, as
rows with the fixed answer; always the same bytes.
"""

import json

from prepare_data import CORPUS, DATA, SYSTEM, conversations
from weitiao.core.example import plain

GENERAL = ("tech_support", "greetings", "conversations", "botprofile", "food")
UNSEEN = ("money", "politics", "humor", "gossip", "computers")
ANSWER = "This is not one of my topics."


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "scope_unseen.jsonl").exists():
        return
    folder = CORPUS.fetch()
    first = lambda kinds: [dialogue[0] for kind in kinds for dialogue in conversations(folder, kind)]  # noqa: E731
    general = list({plain(x): x for x in first(GENERAL)}.values())
    unseen = [x for key, x in {plain(x): x for x in first(UNSEEN)}.items() if key not in {plain(y) for y in general}]
    DATA.mkdir(exist_ok=True)
    write("scope_general.jsonl", [{"text": x} for x in general])
    write("scope_unseen.jsonl", [row(x) for x in unseen])
    print(f"{len(general)} questions out of scope; {len(unseen)} of kinds that nothing is trained on")


def row(question: str) -> dict:
    """A question with the fixed answer, as `weitiao data out-of-scope` writes it."""
    roles = (("system", SYSTEM), ("user", question), ("assistant", ANSWER))
    return {"messages": [{"role": role, "content": text} for role, text in roles], "refusal": ANSWER}


def write(name: str, rows: list[dict]) -> None:
    lines = [json.dumps(x, ensure_ascii=False) + "\n" for x in rows]
    (DATA / name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
