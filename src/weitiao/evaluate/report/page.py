"""A page in both languages: one file that loads nothing else (no scripts, no fonts, no network).

What the two languages say alike (figures, rows, recipes) is on the page once; a text that differs is there twice, and the
switch at the top hides one of them, by CSS alone.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from weitiao.core.files import write_text
from weitiao.core.messages import LANGUAGES, Message, language, reading_in

TEMPLATES = Path(__file__).parent
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
"""HTML has no control characters: their pictures are shown; the end of a line on Windows is the end of a line."""
NO_CHARACTERS = re.compile("[\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")  # no file can hold half of a surrogate pair


def write_page(file: Path, template: str, make: Callable[[], dict[str, Any]]) -> Path:
    """Write the page of a template.

    Args:
        template: a file beside this one.
        make: what the template shows, in the reader's language: called once in each language.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template(template).render(language=language(), **bilingual(make))
    write_text(file, _writable(text))
    return file


def bilingual(make: Callable[[], Any]) -> Any:
    """What `make` returns, with each text that differs between the languages as two spans.

    >>> str(bilingual(lambda: {"n": 3, "head": Message("metric")})["head"])
    '<span lang="en">metric</span><span lang="zh">指标</span>'
    """
    versions = []
    for name in LANGUAGES:
        with reading_in(name):
            versions.append(_spoken(make()))
    return _merged(versions)


def value_interval(text: str) -> tuple[str, str]:
    """
    >>> value_interval("81.0 % [75.1, 85.7]")
    ('81.0 %', '[75.1, 85.7]')
    """
    value, bracket, interval = text.partition(" [")
    return value, (bracket + interval).strip()


def _writable(text: str) -> str:
    """What people and models wrote, without what a page cannot have."""
    return NO_CHARACTERS.sub("\ufffd", text.replace("\r\n", "\n").translate(CONTROLS))


def in_each_language(message: Message) -> str:
    """For where no markup can be, as the title of a drawing: 'loss by step · 各步的损失'."""
    texts = []
    for name in LANGUAGES:
        with reading_in(name):
            texts.append(str(message))
    return " · ".join(dict.fromkeys(texts))


def _spoken(value: Any) -> Any:
    """Messages become text, within lists and mappings too."""
    if isinstance(value, Message):
        return str(value)
    if isinstance(value, dict):
        return {key: _spoken(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spoken(x) for x in value]
    return value


def _merged(versions: list[Any]) -> Any:
    """One value of those in each language."""
    first = versions[0]
    if isinstance(first, dict):
        return {key: _merged([x[key] for x in versions]) for key in first}
    if isinstance(first, list):
        return [_merged(list(x)) for x in zip(*versions, strict=True)]
    if all(x == first for x in versions):
        return first
    spans = (f'<span lang="{name}">{escape(text)}</span>' for name, text in zip(LANGUAGES, versions))
    return Markup("".join(spans))
