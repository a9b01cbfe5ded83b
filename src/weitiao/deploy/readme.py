"""README.md of what leaves weitiao: how other libraries open it, and what it lacks."""

from collections.abc import Sequence
from pathlib import Path

from weitiao.core.messages import Message, joined
from weitiao.core.plain_form import PlainForm

USES: dict[str, Message] = {
    "token_classification": Message(
        "Open it with transformers: pipeline('token-classification', FOLDER). The tag of a word is that of its first "
        "token; weitiao also decodes so that no I-x follows O."
    ),
    "question_answering": Message(
        "Open it with transformers: AutoModelForQuestionAnswering. The scores of starts and ends are exactly these; "
        "long contexts, answer lengths and the threshold of `no answer` are weitiao's own."
    ),
    "masked_lm": Message("Open it with transformers: pipeline('fill-mask', FOLDER)."),
    "scores": Message(
        "Open it with sentence-transformers: SentenceTransformer(FOLDER).encode(texts, or pairs of texts) gives the "
        "probabilities or numbers. AutoModelForSequenceClassification cannot hold its head (one linear layer on pooled "
        "hidden states) and would start a new one at random."
    ),
    "pair_scores": Message(
        "Open it with sentence-transformers 6 or newer: CrossEncoder(FOLDER).predict(pairs). "
        "AutoModelForSequenceClassification cannot hold its head (one linear layer on pooled hidden states) and would "
        "start a new one at random."
    ),
    "embedding": Message("Open it with sentence-transformers: SentenceTransformer(FOLDER).encode(texts)."),
}


def write_readme(folder: Path, form: PlainForm, objective: str) -> None:
    """README.md of a merged model with a head."""
    lines: list[Message | str] = [Message("Trained with weitiao, objective {objective}.", objective=objective)]
    lines.append(USES[form.task])
    if form.labels:
        lines.append(Message("Outputs, in order: {labels}", labels=", ".join(form.labels)))
    write_lines(folder, lines)


def write_lines(folder: Path, lines: Sequence[Message | str]) -> None:
    """README.md of a few sentences."""
    text = str(joined("\n\n", lines))
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")
