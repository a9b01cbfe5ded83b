"""The Modelfile: a Go template is taken only where it writes what the trained template writes."""

# ruff: noqa: E501

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from weitiao.core.errors import InvalidValue, ModelError
from weitiao.core.example import Turn
from weitiao.data.chat.template import Template
from weitiao.deploy.export.format import ExportSource
from weitiao.deploy.export.ollama.go_template import render_go
from weitiao.deploy.export.ollama.modelfile import GO_TEMPLATES, prove, write_modelfile
from weitiao.deploy.formats.ollama import Ollama

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
LOOP = "{% for m in messages %}"
END = "{% endfor %}"
JINJA = {  # as the models have them, without their tools
    "chatml": LOOP + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}" + END
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3": "{{ bos_token }}" + LOOP + "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}" + END + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LOOP
    + "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim"
    " + '<end_of_turn>\n' }}" + END + "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "gemma3": "{{ bos_token }}{% set p = '' %}{% set all = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set p = messages[0]['content'] + '\n\n' %}{% set all = messages[1:] %}{% endif %}{% for m in all %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (p if loop.first else '') }}"
    "{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}" + END + "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}"
    "{% endif %}",
    "mistral": "{{ bos_token }}" + LOOP + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% else %}{{ raise_exception('roles') }}{% endif %}"
    + END,
    "mistral3": "{{ bos_token }}" + LOOP + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% else %}{{ raise_exception('roles') }}{% endif %}"
    + END,
    "phi3": LOOP + "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}" + END + "{{ '<|assistant|>\n' }}",
    "zephyr": LOOP + "{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}" + END + "{{ '<|assistant|>\n' }}",
}  # fmt: skip
SMOLLM = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are SmolLM"
    "<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def renderer(text: str) -> Any:
    template = Template(text, SPECIAL)
    return lambda turns: template.render([Turn(*x) for x in turns], ask=True)


@pytest.mark.parametrize("name", GO_TEMPLATES)
def test_go_template_is_proven_for_the_model_it_is_of(name: str) -> None:
    proven = prove(renderer(JINJA[name]), "<s>")
    assert proven is not None and proven.name == name and proven.system == ""


def test_default_system_message_becomes_that_of_the_modelfile() -> None:
    proven = prove(renderer(SMOLLM), "")
    assert proven is not None and (proven.name, proven.system, proven.takes_system) == ("chatml", "You are SmolLM", True)


OTHERS = {
    "another word": JINJA["chatml"].replace("'<|im_end|>'", "'<|im_end|> '"),
    "numbered turns": LOOP + "{{ loop.index }}. {{ m['content'] }}\n" + END,
    "a system message is lost": JINJA["chatml"].replace(LOOP, "{% for m in messages if m['role'] != 'system' %}"),
    "no prompt for the answer": LOOP + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n" + END,
}


@pytest.mark.parametrize("case", OTHERS)
def test_no_template_is_guessed(case: str) -> None:
    assert prove(renderer(OTHERS[case]), "") is None


GO = (  # what Go 1.23 writes
    ("a {{- .X }} b {{ .X -}}  c", {"X": "1"}, "a1 b 1c"),
    ('{{ if eq .X "1" }}one{{ else if eq .X "2" }}two{{ else }}many{{ end }}!', {"X": "2"}, "two!"),
    ('{{ if eq .X "1" }}one{{ else if eq .X "2" }}two{{ else }}many{{ end }}!', {"X": "3"}, "many!"),
    ('{{ $s := .S }}{{ range .L }}{{ if $s }}{{ $s }}:{{ $s = "" }}{{ end }}{{ .N }} {{ end }}', {"S": "s", "L": [{"N": 1}, {"N": 2}]}, "s:1 2 "),
    ("{{ range .L }}{{ if not .N }}-{{ end }}{{ $.S }}{{ end }}.", {"S": "s", "L": [{"N": ""}, {"N": "x"}]}, "-ss."),
    ("{{ range .L }}x{{ end }}", {"L": []}, ""),
)  # fmt: skip


@pytest.mark.parametrize(("template", "data", "expected"), GO)
def test_go_templates_are_rendered_as_go_does(template: str, data: dict, expected: str) -> None:
    assert render_go(template, data) == expected


@pytest.mark.parametrize("template", ["{{ len .X }}", "{{ if .X }}a", "{{ printf .X }}", "a {{ end }} b"])
def test_other_constructs_are_refused(template: str) -> None:
    with pytest.raises(InvalidValue):
        render_go(template, {"X": "1"})


def test_modelfile_names_every_stop_token() -> None:
    text = write_modelfile("m.gguf", "T\n", ["<|im_end|>", "<|endoftext|>"], "Be brief.", {"temperature": 0.0}, "a.gguf")
    assert text == (
        'FROM ./m.gguf\nADAPTER ./a.gguf\nTEMPLATE """T\n"""\nSYSTEM """Be brief."""\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\nPARAMETER temperature 0.0\n'
    )


def test_unproven_template_is_refused_before_anything_is_written(tiny_llama: Path, tmp_path: Path) -> None:
    def render(turns: Sequence[tuple[str, str]]) -> str:
        return "?".join(content for _, content in turns)

    source = ExportSource("x", tiny_llama, None, (2,), "decoder", lambda dtype: tiny_llama, lambda folder: None)
    source.render, source.tokenizer = render, __import__("transformers").AutoTokenizer.from_pretrained(tiny_llama)
    with pytest.raises(ModelError, match="no Go template is proven"):
        Ollama().write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
