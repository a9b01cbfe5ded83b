"""A Modelfile: the chat template in Go's language, every stop token, and the settings that weitiao measures with.

A Jinja template cannot be translated in general. So there is a table of Go templates, and one is taken only where it is
proven: it writes exactly what the trained template writes, for conversations with and without a system message, of one and
of several turns. Ollama gives a template the messages of one role in a row as one, and the system messages as .System, too
(ollama, template/template.go). It adds the beginning-of-text token itself where the file says so, hence that is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weitiao.core.errors import DataError, InvalidValue
from weitiao.deploy.export.ollama.go_template import render_go

Render = Callable[[Sequence[tuple[str, str]]], str]
_FIRST_USER = '{{ if $system }}{{ $system }}\n\n{{ $system = "" }}{{ end }}{{ .Content }}'
_GEMMA_TURN = (
    '<start_of_turn>{{ if eq .Role "assistant" }}model{{ else }}{{ .Role }}{{ end }}\n{{ .Content }}<end_of_turn>\n'
)

GO_TEMPLATES = {
    "chatml": "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
    "llama3": "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n{{ .Content }}<|eot_id|>{{ end }}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "{{- range .Messages }}" + _GEMMA_TURN + "{{ end }}<start_of_turn>model\n",
    "gemma3": "{{- $system := .System }}{{ range .Messages }}"
    '{{ if eq .Role "user" }}<start_of_turn>user\n' + _FIRST_USER + "<end_of_turn>\n"
    '{{ else if eq .Role "assistant" }}<start_of_turn>model\n{{ .Content }}<end_of_turn>\n{{ end }}'
    "{{ end }}<start_of_turn>model\n",
    "mistral": '{{- $system := .System }}{{ range .Messages }}{{ if eq .Role "user" }}[INST] ' + _FIRST_USER + " [/INST]"
    '{{ else if eq .Role "assistant" }} {{ .Content }}</s>{{ end }}{{ end }}',
    "mistral3": '{{- $system := .System }}{{ range .Messages }}{{ if eq .Role "user" }}[INST] ' + _FIRST_USER + "[/INST]"
    '{{ else if eq .Role "assistant" }} {{ .Content }}</s>{{ end }}{{ end }}',
    "phi3": "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n",
    "zephyr": "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}</s>\n{{ end }}<|assistant|>\n",
}  # fmt: skip
PLAIN = "{{ .Prompt }}{{ .Response }}"
"""For a model without turns: what Ollama does without a template."""
RAW = "{{ .Prompt }}"

PROBES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Where is my order?"),),
    (("user", "Hi."), ("assistant", "Hello!\n\nHow can I help?"), ("user", "What is 1 + 1? {{ .Role }}"), ),
    (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "敏捷的狐狸\nline two"),),
)  # fmt: skip
SYSTEM = "Answer in one word."
MARK = "\u0001SYSTEM\u0001"


@dataclass(frozen=True)
class GoTemplate:
    """A Go template that is proven to write what the trained one does."""

    name: str
    text: str
    system: str
    """What the trained template writes as the system message where there is none; "": nothing."""
    takes_system: bool


def prove(render: Render, bos: str) -> GoTemplate | None:
    """The first of the table that writes the same prompts; None: none does.

    Args:
        render: the trained template.
        bos: what Ollama writes before a prompt by itself, from the file: "" where it does not.
    """
    return next((x for name, text in GO_TEMPLATES.items() if (x := _proven(name, text, render, bos)) is not None), None)


def _proven(name: str, text: str, render: Render, bos: str) -> GoTemplate | None:
    default = _default_system(text, render, bos)
    if default is None:
        return None
    for probe in PROBES:
        if _go(text, (("system", default), *probe) if default else probe) != _trained(render, probe, bos):
            return None
    with_system = [((("system", SYSTEM), *probe)) for probe in PROBES]
    expected = [_trained(render, x, bos) for x in with_system]
    takes_system = all(x is not None for x in expected)
    if takes_system and any(_go(text, x) != e for x, e in zip(with_system, expected)):
        return None
    return GoTemplate(name, text, default, takes_system)


def _default_system(text: str, render: Render, bos: str) -> str | None:
    """The system message that the trained template writes by itself; "": none; None: the templates differ."""
    trained = _trained(render, PROBES[0], bos)
    if trained is None:
        return None
    if _go(text, PROBES[0]) == trained:
        return ""
    before, _, after = _go(text, (("system", MARK), *PROBES[0])).partition(MARK)
    if MARK in after or not trained.startswith(before) or not trained.endswith(after):
        return None
    return trained[len(before) : len(trained) - len(after)] or None


def _go(text: str, turns: Sequence[tuple[str, str]]) -> str:
    """As Ollama calls it."""
    messages = [{"Role": role, "Content": content} for role, content in turns]
    system = "\n\n".join(content for role, content in turns if role == "system")
    return render_go(text, {"Messages": messages, "System": system, "Response": ""})


def _trained(render: Render, turns: Sequence[tuple[str, str]], bos: str) -> str | None:
    """What the trained template writes, without what Ollama writes itself; None: it rejects the turns."""
    try:
        text = render(turns)
    except (InvalidValue, DataError):
        return None
    return text.removeprefix(bos)


def write_modelfile(
    model: str, template: str, stops: Sequence[str], system: str, parameters: dict[str, object], adapter: str = ""
) -> str:
    """The text of a Modelfile.

    Args:
        model: the GGUF file, beside it.
        stops: texts of all stop tokens.
        adapter: an adapter in GGUF, beside it.
    """
    lines = [f"FROM ./{model}"]
    lines += [f"ADAPTER ./{adapter}"] if adapter else []
    lines.append(f'TEMPLATE """{template}"""')
    lines += [f'SYSTEM """{system}"""'] if system else []
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += [f"PARAMETER {key} {value}" for key, value in parameters.items()]
    return "\n".join(lines) + "\n"
