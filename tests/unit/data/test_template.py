"""Chat templates: rendered as transformers renders them, and within bounds."""

import threading
import time
from pathlib import Path

import pytest

from support.chat_templates import TEMPLATES
from support.models import make_tokenizer
from weitiao.core import jinja_sandbox as module
from weitiao.core.errors import DataError
from weitiao.core.example import Turn
from weitiao.data.chat.template import Template, read_template
from weitiao.data.tokenization import ChatProcessor

TALK = [
    Turn("user", "what time\nis it "),
    Turn("assistant", "<think>\nboxes\n</think>\n\nseven"),
    Turn("user", "你好"),
    Turn("assistant", "世界"),
]


def both(text: str, turns: list[Turn], ask: bool = False) -> tuple[str, str]:
    """(ours, transformers')"""
    tokenizer = make_tokenizer(text)
    template = ChatProcessor.make(tokenizer).template
    assert template is not None
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return template.render(turns, ask), tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TEMPLATES)
def test_template_equals_transformers(name: str, turns: int, ask: bool) -> None:
    ours, theirs = both(TEMPLATES[name], TALK[:turns], ask)
    assert ours == theirs and "what time\nis it" in ours


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2) }}",
        "{{ strftime_now('%Y') }}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "  {% if true %}\n  x\n  {% endif %}\n{{ bos_token }}{{ eos_token }}",
        "{{ unk_token }}|{{ nothing }}|{{ messages[0]['content'].split(' ')[0] }}",
    ],
)
def test_template_filters_and_globals_equal_transformers(text: str) -> None:
    ours, theirs = both(text, TALK)
    assert ours == theirs


def test_template_tools_none() -> None:
    ours, theirs = both(
        "{% if tools is not none %}tools!{% endif %}{% if documents is not none %}documents!{% endif %}ok", TALK
    )
    assert ours == theirs == "ok"


def test_template_generation_tag() -> None:
    text = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    ours, theirs = both(text, TALK)
    assert ours == theirs


def test_template_exception_is_row_error() -> None:
    with pytest.raises(ValueError, match="the chat template rejects this conversation: only users"):
        Template("{{ raise_exception('only users') }}", {}).render(TALK)


@pytest.fixture
def short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIME_LIMIT", 0.3)


LOOPS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% for i in range(50000) %}{% set x = i ~ n %}{% endfor %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
]


@pytest.mark.parametrize("text", LOOPS)
def test_template_endless_loop_stopped(short_time: None, text: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(DataError, match="chat_template: it cannot be rendered: it ran longer than 0.3 seconds"):
        Template(text, {}).render(TALK)
    assert time.perf_counter() - begun < 3


@pytest.mark.parametrize(
    "text", ["{{ 'a' * 4000000000 }}", "{{ 4000000000 * 'a' }}", "{{ ['a'] * 4000000000 }}", "{{ 9 ** 99 ** 9 }}"]
)
def test_template_memory_bomb_refused(text: str) -> None:
    begun = time.perf_counter()
    with pytest.raises(DataError, match="chat_template: it cannot be rendered: it computes"):
        Template(text, {}).render(TALK)
    assert time.perf_counter() - begun < 1


GROWING = "{% set n = namespace(x='a') %}{% for i in range(25) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}"


@pytest.mark.parametrize("text", [GROWING, "{{ 'a' | center(20000000) | length }}", "{{ ('%20000000d' % 5) | length }}"])
def test_template_memory_bomb_variants(text: str) -> None:
    try:
        made = Template(text, {}).render(TALK)
    except DataError:
        return
    assert int(made) <= module.MAX_CHARACTERS


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% set _ = messages.append(1) %}",
        pytest.param("{% include '/etc/passwd' %}"),
        pytest.param("{{ messages[0].content + 1 }}"),
    ],
)
def test_template_sandbox(text: str) -> None:
    with pytest.raises(DataError, match="chat_template: it cannot be rendered|chat_template, line"):
        Template(text, {}).render(TALK)


def test_template_ordinary_repetition_allowed() -> None:
    assert Template("{{ '-' * 20 }}{{ 3 * 4 }}", {}).render(TALK) == "-" * 20 + "12"


def test_template_syntax_error_with_line() -> None:
    with pytest.raises(DataError, match="chat_template, line 2: "):
        Template("{% for m in messages %}\n{% nonsense %}{% endfor %}", {})


def test_template_setting_shipped_file_or_none(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    assert read_template(None) is None
    assert read_template(str(tmp_path / "mine.jinja")) == "{{ messages[0].content }}"
    text = read_template("chatml")
    assert text is not None and both(text, TALK)[0] == both(TEMPLATES["chatml"], TALK)[0]
    with pytest.raises(DataError, match="nowhere is neither a file nor a built-in template; built-in are: chatml"):
        read_template("nowhere")


@pytest.mark.parametrize("in_thread", [False, True])
def test_the_limit_outlives_finalizers(in_thread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error raised in __del__ is swallowed, and tracing is then off: the clock must not ring there."""
    monkeypatch.setattr(module, "TIME_LIMIT", 0.3)
    monkeypatch.setattr(module, "THREAD_TIME_LIMIT", 0.3)

    class Slow:
        def __del__(self) -> None:
            until = time.perf_counter() + 0.02
            while time.perf_counter() < until:
                pass

    environment = module.Sandbox()
    environment.globals["drop"] = lambda: bool(Slow())
    template = environment.compiled("{% for i in range(2000) %}{{ drop() }}{% endfor %}", "bomb")  # 40 seconds

    def render() -> str:
        try:
            with module.time_limit():
                template.render()
        except TimeoutError:
            return "stopped"
        return "ran to its end"

    if not in_thread:
        assert render() == "stopped"
        return
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(render()), daemon=True)
    thread.start()
    thread.join(10)
    assert outcomes == ["stopped"]
