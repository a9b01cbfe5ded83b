"""Words of an answer, in any script.

Lower case; a word is a run of letters, digits and their marks. Scripts that are written without spaces (Han, kana, Thai,
Lao, Khmer, Burmese) have a word for each character.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

UNSPACED = (  # first and last character
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u1000", "\u109f"),  # Burmese
    ("\u1780", "\u17ff"),  # Khmer
    ("\u3040", "\u30ff"),  # kana
    ("\u3400", "\u9fff"),  # Han
    ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
)


def split_words(text: str) -> list[str]:
    """The words that are compared.

    >>> split_words("The cat, 2 dogs: 你好, हिन्दी")
    ['the', 'cat', '2', 'dogs', '你', '好', 'हिन्दी']
    """
    tokens: list[str] = []
    goes_on = False  # whether the next letter belongs to the last word
    for x in text.lower():
        kind, unspaced = unicodedata.category(x)[0], is_unspaced(x)
        if kind == "M" and tokens:
            tokens[-1] += x
        elif kind not in "LN":
            goes_on = False
        elif goes_on and not unspaced:
            tokens[-1] += x
        else:
            tokens.append(x)
            goes_on = not unspaced
    return tokens


def is_unspaced(character: str) -> bool:
    """Whether it is of a script that is written without spaces between words."""
    return any(first <= character <= last for first, last in UNSPACED)


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each sequence of n words occurs.

    >>> ngrams("a b a b".split(), 2)[("a", "b")]
    2
    """
    return Counter(zip(*(words[i:] for i in range(n))))


def ngram_f1(predicted: Sequence[str], reference: Sequence[str], n: int) -> float:
    """F1 of the n-grams that both have (Lin 2004, "ROUGE", sec. 2, with precision and recall weighted equally)."""
    a, b = ngrams(predicted, n), ngrams(reference, n)
    both, total = sum((a & b).values()), sum(a.values()) + sum(b.values())
    return 2 * both / total if total else 0.0


def distinct_share(counts: Sequence[Counter[tuple[str, ...]]]) -> float:
    """Different n-grams of all rows together, divided by their number; 0 where there are none."""
    total = sum(sum(x.values()) for x in counts)
    return len(set().union(*counts)) / total if total else 0.0
