"""A domain's documents, and questions about them: Ansible's modules. Run: python quickstart/prepare_ansible.py

The documentation of ansible-core's modules (GPL-3.0) is YAML in their source, out of Python's package index; nothing of it
is imported. Modules are split three ways, by name:

test         their text is trained on, no question about them is; all test questions are theirs
training     text and questions
held out     neither: for bits per byte of text that was never seen

A question asks what an option of a module does; the answer is the first paragraph of its description. Test questions whose
answer is nearly that of a training question (modules share options) are dropped (Jaccard similarity of n-grams >= 0.8),
and so are, from the text that is trained on, modules that say nearly the same as a held-out one.

Writes quickstart/data/ansible_{text,text_test,train,test}.jsonl, and an exam over the test modules: which of four
descriptions of options of the same module is that of this one? (ansible_exam.yaml, ansible_exam.jsonl). Always the same
bytes.
"""

import ast
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from weitiao.core.example import content_hash
from weitiao.data.duplicates.overlap import near_duplicates
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
MODULES = PackageFile("ansible-core", "2.18.6", "ansible/modules/", megabytes=3)
TEST, HELD_OUT = 30, 10  # modules; the others are for training
CHOICES = 4  # options of an exam question
MARKUP = re.compile(r"\b[A-Z]+\(([^()]*(?:\([^()]*\)[^()]*)*)\)")  # O(state=absent), V(true), M(ansible.builtin.copy)
EXAM = """\
name: ansible
description: What an option of a module of Ansible does.
language: en
data: {path: ansible_exam.jsonl}
question: "{{ question }}"
options: "{{ options }}"
answer: "{{ answer }}"
normalization: characters
apply_chat_template: true
"""

Document = dict[str, Any]


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "ansible_exam.yaml").exists():
        return
    found = [documentation(file) for file in sorted(MODULES.fetch().glob("*.py"))]
    documents = sorted((x for x in found if x), key=lambda x: content_hash(x["module"])[::-1])
    test, held_out, training = documents[:TEST], documents[TEST : TEST + HELD_OUT], documents[TEST + HELD_OUT :]
    texts = [text_of(x) for x in (*test, *training)]
    texts_held_out = [text_of(x) for x in held_out]
    same = near_duplicates(texts_held_out, texts)  # training -> held out
    asked, known = (list(unique(q for x in part for q in questions_of(x))) for part in (test, training))
    repeated = near_duplicates([x["answer"] for x in known], [x["answer"] for x in asked])
    asked = [x for i, x in enumerate(asked) if i not in repeated]
    exam = exam_of(asked)
    DATA.mkdir(exist_ok=True)
    write("text", [{"text": x} for i, x in enumerate(texts) if i not in same])
    write("text_test", [{"text": x} for x in texts_held_out])
    write("train", [{"question": x["question"], "answer": x["answer"]} for x in known])
    write("test", [{"question": x["question"], "answer": x["answer"], "group": x["module"]} for x in asked])
    write("exam", exam)
    (DATA / "ansible_exam.yaml").write_text(EXAM, encoding="utf-8")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """A file of rows."""
    lines = [json.dumps(x, ensure_ascii=False) + "\n" for x in rows]
    (DATA / f"ansible_{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"ansible_{name}: {len(rows)} rows, {sum(map(len, lines)) // 1000} kB")


def documentation(file: Path) -> Document | None:
    """What a module's source says of itself; None: nothing."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DOCUMENTATION":
            return yaml.safe_load(ast.literal_eval(node.value))
    return None


def plain(text: str) -> str:
    """Text without Ansible's markup.

    >>> plain("If O(state=absent), V(true) is the\\n default of M(ansible.builtin.file).")
    'If state=absent, true is the default of file.'
    """
    while MARKUP.search(text):
        text = MARKUP.sub(lambda x: x[1].partition("#")[2] or x[1], text)
    return " ".join(text.replace("ansible.builtin.", "").split())


def paragraphs(described: str | list[str] | None) -> list[str]:
    """A description, which is a text or a list of texts."""
    return [plain(str(x)) for x in ([described] if isinstance(described, str) else described or [])]


def text_of(module: Document) -> str:
    """A module's documentation as text."""
    title = plain(str(module.get("short_description", "")))
    lines = [f"Ansible module {module['module']}: {title}", "", *paragraphs(module.get("description"))]
    for name, option in (module.get("options") or {}).items():
        lines += ["", f"Option {name} of the module {module['module']}:", *paragraphs(option.get("description", []))]
        lines += [f"Choices: {', '.join(map(str, option['choices']))}."] if option.get("choices") else []
        lines += [f"Default: {option['default']}."] if option.get("default") is not None else []
    notes = paragraphs(module.get("notes") or [])
    return "\n".join([*lines, *(["", "Notes:", *notes] if notes else [])])


def questions_of(module: Document) -> list[dict[str, str]]:
    """A question for each option that is described."""
    rows = []
    for name, option in (module.get("options") or {}).items():
        if answer := next(iter(paragraphs(option.get("description", []))), ""):
            question = f"In Ansible, what does the option {name} of the module {module['module']} do?"
            rows.append({"question": question, "answer": answer, "module": module["module"]})
    return rows


def unique(rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The first row with each answer."""
    return list({content_hash(x["answer"]): x for x in reversed(list(rows))}.values())[::-1]


def exam_of(asked: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Each question with the answers of three others about the same module; the right one is anywhere."""
    dice, rows = random.Random(0), []
    for x in asked:
        others = [y["answer"] for y in asked if y["module"] == x["module"] and y is not x]
        if len(others) >= CHOICES - 1:
            options = [x["answer"], *dice.sample(others, CHOICES - 1)]
            dice.shuffle(options)
            rows.append({"question": x["question"], "options": options, "answer": x["answer"]})
    return rows


if __name__ == "__main__":
    main()
