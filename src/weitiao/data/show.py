"""What carries loss, drawn before step 1: one row a source, learnt tokens in one colour, read ones in another."""

from rich.text import Text

from weitiao.core.batch import IGNORE, Row

LEARNT, READ = "bold green", "dim"


def draw_row(row: Row, tokenizer: object, longest: int = 400) -> Text:
    """A row's tokens as coloured text: what is learnt is green, what is only read is dim. Token t + 1 is learnt where
    position t has a label; the last learnt token is not among the inputs and is drawn from its label."""
    decode = tokenizer.decode  # pyright: ignore[reportAttributeAccessIssue]
    ids, labels = list(row["input_ids"]), list(row["labels"])
    tokens = [ids[0], *(label if label != IGNORE else token for label, token in zip(labels, [*ids[1:], IGNORE]))]
    learnt = [False, *(label != IGNORE for label in labels)]
    drawn = Text()
    for token, is_learnt in zip(tokens, learnt):
        if token != IGNORE:
            drawn.append(decode([int(token)]).replace("\n", "⏎\n"), LEARNT if is_learnt else READ)
    if len(drawn) > longest:
        tail = drawn[-longest:]
        drawn = Text("… ", READ).append_text(tail)
    return drawn


def supervised_share(supervised: int, tokens: int) -> str:
    """'1,234 of 5,678 tokens carry loss (21.7 %)'."""
    return f"{supervised:,} of {tokens:,} tokens carry loss ({100 * supervised / max(tokens, 1):.1f} %)"
