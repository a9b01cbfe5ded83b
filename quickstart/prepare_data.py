"""Real data for the quickstart: chatterbot-corpus (BSD), English. Run: python quickstart/prepare_data.py

The task: read a message, reply with its topic. Each message of nine topic files is one row; the same message is kept
once, a message that two topics claim is dropped, and messages that are nearly the same (Jaccard of their 4-letter
pieces >= 0.6) are put on one side of the split together, one of them at most among the held-out rows. A short chat
part teaches the corpus's own replies to greetings and small talk.

Writes quickstart/data/{train,test,chat}.jsonl (conversations), topics_{train,test}.jsonl (the same messages as text and
label) and few_shot.json; the same bytes every time.
"""

import hashlib
import json
from pathlib import Path

import yaml

from weitiao.core.example import plain
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
CORPUS = PackageFile("chatterbot-corpus", "1.3.3", "chatterbot_corpus/data/english/")
TOPICS = ("ai", "coding", "emotion", "literature", "movies", "psychology", "science", "sports", "trivia")
SMALL_TALK = ("greetings", "conversations", "botprofile", "food", "computers")
ASK = f"Reply with the topic of the message, one of: {', '.join(TOPICS)}."
HELD_OUT, ALIKE = 210, 0.6


def main() -> None:
    """Make the files, unless they are there."""
    if (DATA / "topics_test.jsonl").exists():
        return
    folder = CORPUS.fetch()
    messages = routed_messages(folder)
    train, test = split(messages)
    DATA.mkdir(exist_ok=True)
    write("train.jsonl", [routing_row(message, topic) for message, topic in train])
    write("test.jsonl", [routing_row(message, topic) for message, topic in test])
    write("chat.jsonl", [chat_row(ask, reply) for ask, reply in small_talk(folder)])
    write("topics_train.jsonl", [{"text": message, "label": topic} for message, topic in train])
    shown: dict[str, str] = {}
    for message, topic in train:  # one short example of each of five topics, for the five-shot baseline
        if len(shown) < 5 and topic not in shown and len(message) < 60:
            shown[topic] = message
    (DATA / "few_shot.json").write_text(json.dumps([[m, t] for t, m in shown.items()], indent=1))
    write("topics_test.jsonl", [{"text": message, "label": topic} for message, topic in test])
    print(f"{len(train)} messages to learn from, {len(test)} held out, topics: {', '.join(TOPICS)}")


def conversations(folder: Path, topic: str) -> list[list[str]]:
    text = (folder / f"{topic}.yml").read_text(encoding="utf-8")
    return [[str(turn).strip() for turn in turns] for turns in yaml.safe_load(text)["conversations"]]


def routed_messages(folder: Path) -> list[tuple[str, str]]:
    """(message, topic), each message once, none with two topics; in an order that only its content decides."""
    found: dict[str, tuple[str, str]] = {}
    claimed: dict[str, set[str]] = {}
    for topic in TOPICS:
        for turns in conversations(folder, topic):
            found.setdefault(plain(turns[0]), (turns[0], topic))
            claimed.setdefault(plain(turns[0]), set()).add(topic)
    kept = [found[key] for key, topics in claimed.items() if len(topics) == 1]
    return sorted(kept, key=lambda x: hashlib.sha256(plain(x[0]).encode()).hexdigest())


def pieces(text: str) -> set[str]:
    text = f"  {plain(text)} "
    return {text[i : i + 4] for i in range(len(text) - 3)}


def split(messages: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Groups of nearly equal messages go to one side; a held-out group gives one row."""
    cut = [pieces(message) for message, _ in messages]
    group = list(range(len(messages)))
    for i in range(len(messages)):
        for j in range(i):
            if len(cut[i] & cut[j]) >= ALIKE * len(cut[i] | cut[j]):
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    train, test, seen = [], [], set()
    for message, g in zip(messages, group):
        if g in seen:
            continue
        if len(seen) < HELD_OUT:
            seen.add(g)
            test.append(message)
        else:
            train.append(message)
    return train, test


def small_talk(folder: Path) -> list[tuple[str, str]]:
    """Short question-and-reply pairs, each question once."""
    found: dict[str, tuple[str, str]] = {}
    for topic in SMALL_TALK:
        for turns in conversations(folder, topic):
            if len(turns) > 1 and len(turns[1]) < 120 and turns[1]:
                found.setdefault(plain(turns[0]), (turns[0], turns[1]))
    return list(found.values())


def routing_row(message: str, topic: str) -> dict:
    return {"messages": [turn("system", ASK), turn("user", message), turn("assistant", topic)]}


def chat_row(ask: str, reply: str) -> dict:
    return {"messages": [turn("system", "You are a friendly robot."), turn("user", ask), turn("assistant", reply)]}


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def write(name: str, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temp = DATA / f"{name}.tmp"
    temp.write_text(text, encoding="utf-8")
    temp.replace(DATA / name)


if __name__ == "__main__":
    main()
