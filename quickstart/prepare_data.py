"""Data for the quickstart: chatterbot-corpus (BSD), English. Run: python quickstart/prepare_data.py

The task: read a message, reply with its topic. Each message of nine topic files is one row. Repeated messages are kept
once, messages with two topics are dropped, and near-duplicates (Jaccard similarity of 4-character shingles >= 0.6) are on
the same side of the split, with only one of them in the test rows. A short chat part trains the corpus's own replies to
greetings and small talk.

Writes quickstart/data/{train,test,chat}.jsonl (conversations), topics_{train,test}.jsonl (the same messages as text and
label); always the same bytes.
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
SYSTEM = f"Reply with the topic of the message, one of: {', '.join(TOPICS)}."
HELD_OUT, SIMILARITY = 210, 0.6


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "topics_test.jsonl").exists():
        return
    folder = CORPUS.fetch()
    messages = routed_messages(folder)
    train, test = split(messages)
    DATA.mkdir(exist_ok=True)
    write("train.jsonl", [routing_row(message, topic) for message, topic in train])
    write("test.jsonl", [routing_row(message, topic) for message, topic in test])
    write("chat.jsonl", [chat_row(message, reply) for message, reply in small_talk(folder)])
    write("topics_train.jsonl", [{"text": message, "label": topic} for message, topic in train])
    write("topics_test.jsonl", [{"text": message, "label": topic} for message, topic in test])
    print(f"{len(train)} messages for training, {len(test)} held out, topics: {', '.join(TOPICS)}")


def conversations(folder: Path, topic: str) -> list[list[str]]:
    text = (folder / f"{topic}.yml").read_text(encoding="utf-8")
    return [[str(turn).strip() for turn in dialogue] for dialogue in yaml.safe_load(text)["conversations"]]


def routed_messages(folder: Path) -> list[tuple[str, str]]:
    """(message, topic), each message once, none with two topics; sorted by content hash."""
    unique: dict[str, tuple[str, str]] = {}
    labels: dict[str, set[str]] = {}
    for topic in TOPICS:
        for dialogue in conversations(folder, topic):
            unique.setdefault(plain(dialogue[0]), (dialogue[0], topic))
            labels.setdefault(plain(dialogue[0]), set()).add(topic)
    messages = [unique[key] for key, topics in labels.items() if len(topics) == 1]
    return sorted(messages, key=lambda x: hashlib.sha256(plain(x[0]).encode()).hexdigest())


def shingles(text: str) -> set[str]:
    """Its 4-character substrings."""
    text = f"  {plain(text)} "
    return {text[i : i + 4] for i in range(len(text) - 3)}


def split(messages: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Groups of near-duplicates go to one side; a held-out group contributes one row."""
    sets = [shingles(message) for message, _ in messages]
    group = list(range(len(messages)))
    for i in range(len(messages)):
        for j in range(i):
            if len(sets[i] & sets[j]) >= SIMILARITY * len(sets[i] | sets[j]):
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    train, test, test_groups = [], [], set()
    for message, g in zip(messages, group):
        if g in test_groups:
            continue
        if len(test_groups) < HELD_OUT:
            test_groups.add(g)
            test.append(message)
        else:
            train.append(message)
    return train, test


def small_talk(folder: Path) -> list[tuple[str, str]]:
    """Short pairs of message and reply, each message once."""
    unique: dict[str, tuple[str, str]] = {}
    for topic in SMALL_TALK:
        for dialogue in conversations(folder, topic):
            if len(dialogue) > 1 and len(dialogue[1]) < 120 and dialogue[1]:
                unique.setdefault(plain(dialogue[0]), (dialogue[0], dialogue[1]))
    return list(unique.values())


def routing_row(message: str, topic: str) -> dict:
    return {"messages": [turn("system", SYSTEM), turn("user", message), turn("assistant", topic)]}


def chat_row(message: str, reply: str) -> dict:
    return {"messages": [turn("system", "You are a friendly robot."), turn("user", message), turn("assistant", reply)]}


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def write(name: str, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary = DATA / f"{name}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(DATA / name)


if __name__ == "__main__":
    main()
