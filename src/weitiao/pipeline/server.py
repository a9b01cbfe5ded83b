"""`weitiao serve`: open the models, say what is in force, and answer until SIGTERM."""

import ipaddress
import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.messages import Message
from weitiao.core.reporter import Reporter
from weitiao.deploy.serve.access import LOOPBACK, Access
from weitiao.deploy.serve.app import make_app
from weitiao.deploy.serve.child_engine import make_command, running
from weitiao.deploy.serve.front import Front, make_front
from weitiao.deploy.serve.limits import NAME, Limits
from weitiao.deploy.serve.served_model import ServedModel
from weitiao.deploy.serve.server import Server, open_socket
from weitiao.deploy.serve.service import Service
from weitiao.pipeline.serving import check_name, name_of, open_served, read_targets, sampling_defaults, split_target

KEY = "WEITIAO_API_KEY"
MIN_KEY = 16  # characters
KEY_CHARACTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~+/=")


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says."""

    targets: Sequence[str]
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_files: Sequence[str] = ()
    """Files with keys, one a line: KEY or NAME:KEY."""
    random_key: bool = False
    """Make a key, and print it once."""
    allowed_hosts: Sequence[str] = ()
    """Names under which the server is reached, besides localhost and its address."""
    adapters_dir: str = ""
    precision: str = ""
    overlong: str = "auto"
    """What is done with conversations that are too long: error, drop_turns, or auto, as the model was trained."""
    limits: Mapping[str, str] = field(default_factory=dict)
    engine: str = "own"
    """own, vllm or llamacpp."""


def serve(options: ServeOptions, reporter: Reporter) -> None:
    """Serve until told to end.

    Raises:
        ModelError: the address, the key or a target cannot be used.
    """
    limits, access = read_limits(options.limits), read_access(options)
    if options.engine != "own":
        serve_child(options, limits, access, reporter)
        return
    listener = open_socket(options.host, options.port)
    try:
        with reporter.spin(Message("loading the model")):
            served = open_served(read_targets(options.targets), options.precision, options.adapters_dir, options.overlong)
    except BaseException:
        listener.close()
        raise
    service = Service.make(served, limits)
    port = listener.getsockname()[1]
    for line in describe(service, access, options, port):
        reporter.say(line)
    start_log()
    Server(make_app(service, access), limits, service).run([listener])
    reporter.say(Message("the server has ended; all answers were finished or refused"))


def serve_child(options: ServeOptions, limits: Limits, access: Access, reporter: Reporter) -> None:
    """Serve by another engine, a child process behind the same front.

    Raises:
        ModelError: the engine is not installed, does not start, or cannot serve what is named.
    """
    if len(options.targets) != 1 or options.adapters_dir:
        raise ModelError("--engine {engine} serves one merged model; adapters need --engine own", engine=options.engine)
    if options.overlong == "drop_turns":
        raise ModelError(
            "--overlong drop_turns needs --engine own: {engine} reads conversations itself", engine=options.engine
        )
    name, path = split_target(options.targets[0])
    name = name or name_of(path).removesuffix(".gguf")
    check_name(name, path)
    command = make_command(options.engine, path, name)
    with closing(open_socket(options.host, options.port)) as listener, ExitStack() as stack:
        with reporter.spin(Message("loading the model")):
            stack.enter_context(running(command))
        front, address = Front(name, command, limits), _address(options, listener.getsockname()[1])
        text = Message("engine:    {engine}, a child process on a port of this machine with a key of its own")
        for line in (*_address_lines(access, options, address), Message(text, engine=options.engine)):
            reporter.say(line)
        for line in examples(name, frozenset({"generate"}), access, address):
            reporter.say(line)
        start_log()
        Server(make_front(front, access), limits, front).run([listener])
    reporter.say(Message("the server has ended; all answers were finished or refused"))


def start_log() -> None:
    """Access lines and errors go to standard error; uvicorn's own lines only where something is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("weitiao.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


# -- options ----------------------------------------------------------------------------------------------------------


def read_limits(changes: Mapping[str, str]) -> Limits:
    """The limits, with those that the command line changes.

    Raises:
        RecipeError: there is no such limit, or its value is not possible.
    """
    if unknown := sorted(changes.keys() - Limits.model_fields.keys()):
        known = ", ".join(Limits.model_fields)
        raise RecipeError("--limit: there is no {name!r}; there are: {known}", name=unknown[0], known=known)
    try:
        return Limits.model_validate({key: json.loads(value) for key, value in changes.items()})
    except (ValidationError, ValueError):
        raise RecipeError("--limit takes NAME=NUMBER within its range: {limits}", limits=dict(changes)) from None


def read_access(options: ServeOptions) -> Access:
    """Who may ask.

    Raises:
        ModelError: another address than this machine's own, without a key; or a key that cannot be one.
    """
    keys = _read_keys(options)
    if not keys and not is_loopback(options.host):
        raise ModelError(
            "{host} can be reached from other machines, so a key is needed: put one into a file and give --api-key-file "
            "FILE, or set {variable} (python -c 'import secrets; print(secrets.token_urlsafe(32))')",
            host=options.host,
            variable=KEY,
        )
    hosts = [f"[{x}]" if ":" in x and not x.startswith("[") else x for x in options.allowed_hosts]
    return Access(keys, (*LOOPBACK, *(x.lower() for x in hosts)))


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("localhost")
    (True, True, False, True)

    Raises:
        ModelError: it is not an address.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ModelError("--host takes an IP address or localhost, not {host!r}", host=host) from None


def _read_keys(options: ServeOptions) -> dict[str, str]:
    """The keys by their names.

    Raises:
        ModelError: a file cannot be read or has no key, or two keys have one name.
    """
    if options.random_key:
        return {"random": secrets.token_urlsafe(32)}
    lines = [(KEY, x) for x in os.environ.get(KEY, "").split()] if not options.api_key_files else []
    for file in options.api_key_files:
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ModelError("--api-key-file: {file} cannot be read", file=file) from None
        found = [x.strip() for x in text.splitlines() if x.strip() and not x.lstrip().startswith("#")]
        if not found:
            raise ModelError("--api-key-file: {file} has no key", file=file)
        lines += [(file, x) for x in found]
    keys: dict[str, str] = {}
    for place, line in lines:
        name, separator, key = line.rpartition(":")
        name = name if separator else f"key-{len(keys) + 1}" if len(lines) > 1 else "key"
        _check_key(place, name, key)
        if name in keys or key in keys.values():
            raise ModelError("{place}: the key {name} is there twice", place=place, name=name)
        keys[name] = key
    return keys


def _check_key(place: str, name: str, key: str) -> None:
    if len(key) < MIN_KEY or not set(key) <= KEY_CHARACTERS:  # first: of KEY:NAME, no message may show the key as a name
        raise ModelError(
            "{place}: a key has at least {n} characters, letters, digits and -_.~+/= (python -c 'import secrets; "
            "print(secrets.token_urlsafe(32))')",
            place=place,
            n=MIN_KEY,
        )
    if not NAME.fullmatch(name):
        raise ModelError(
            "{place}: {name!r} cannot be the name of a key: letters, digits, '.', '_' and '-'", place=place, name=name
        )


# -- what is in force -------------------------------------------------------------------------------------------------


def describe(service: Service, access: Access, options: ServeOptions, port: int) -> list[Message | str]:
    """The lines that are printed before the first request."""
    served, limits = service.served, service.limits
    address = _address(options, port)
    lines = _address_lines(access, options, address)
    lines.append(Message("base:      {base}", base=served.base))
    if served.adapters.resident:
        lines.append(Message("adapters:  {names}", names=", ".join(served.adapters.resident)))
    if options.adapters_dir:
        n = len(service.table.names()) - len(served.adapters.resident) - 1
        text = Message("           and {n:,} in {folder}, loaded when asked for, {most} at once (max_cpu_loras)")
        lines.append(Message(text, n=n, folder=options.adapters_dir, most=limits.max_cpu_loras))
    lines += [Message(template, **values) for template, values in _model_lines(served, limits)]
    lines.append(
        Message(
            "limits:    {queue} waiting, {seconds:g} s an answer, {body:,} bytes a body (--limit NAME=VALUE changes one)",
            queue=limits.max_queue,
            seconds=limits.request_timeout,
            body=limits.max_body_bytes,
        )
    )
    if limits.max_parallel_requests or limits.requests_per_minute:
        most = [
            limits.max_parallel_requests or Message("any number of"),
            limits.requests_per_minute or Message("any number of"),
        ]
        text = Message("each key:  {answers} answers at once, {requests} requests a minute")
        lines.append(Message(text, answers=most[0], requests=most[1]))
    return [*lines, "", *examples(service.table.names()[0], served.abilities, access, address)]


def _address(options: ServeOptions, port: int) -> str:
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{'127.0.0.1' if options.host in ('0.0.0.0', '::') else host}:{port}"


def _address_lines(access: Access, options: ServeOptions, address: str) -> list[Message | str]:
    lines: list[Message | str] = [Message("address:   {address} (listening on {host})", address=address, host=options.host)]
    if options.random_key:
        (key,) = access.keys.values()
        lines.append(Message("key:       {key} (of this start, printed this once)", key=key))
    elif access.keys:
        origin = ", ".join(options.api_key_files) or KEY
        text = Message("key:       needed on every route but /health; {n} from {origin}")
        lines.append(Message(text, n=len(access.keys), origin=origin))
    else:
        lines.append(Message("key:       none: every program of this machine may ask (--random-key makes one)"))
    if access.hosts != LOOPBACK:
        lines.append(Message("hosts:     {hosts}", hosts=", ".join(access.hosts)))
    return lines


def _model_lines(served: ServedModel, limits: Limits) -> list[tuple[Message, dict[str, Any]]]:
    lines = [(message, {}) for message in served.settings]
    if served.engine is not None:
        room = {
            "n": served.engine.max_length,
            "slots": served.engine.load.slots,
            "new": min(limits.default_new_tokens, served.engine.max_length),
        }
        text = Message(
            "engine:    {slots} answers at once, up to {n:,} tokens each; max_tokens is {new:,} where none is given"
        )
        lines += [(text, room), (Message("sampling:  {defaults}"), {"defaults": sampling_defaults()})]
    return lines


def examples(name: str, abilities: frozenset[str], access: Access, address: str) -> list[Message | str]:
    """A curl line, a Python snippet and the page, for the model that is served."""
    auth = ' -H "Authorization: Bearer $WEITIAO_API_KEY"' if access.keys else ""
    path, body = _example_call(name, abilities)
    lines: list[Message | str] = [
        f"curl {address}{path}{auth} -H 'Content-Type: application/json' -d '{json.dumps(body, ensure_ascii=False)}'"
    ]
    if "generate" in abilities:
        key = 'os.environ["WEITIAO_API_KEY"]' if access.keys else '"none"'
        lines += [
            "",
            "import os" if access.keys else "",
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{address}/v1", api_key={key})',
            f'answer = client.chat.completions.create(model="{name}", messages={body["messages"]!r})',
            "print(answer.choices[0].message.content)",
            "",
            Message("chat page: {address}/", address=address),
        ]
    return [x for i, x in enumerate(lines) if x != "" or (i and lines[i - 1] != "")]


def _example_call(name: str, abilities: frozenset[str]) -> tuple[str, dict[str, Any]]:
    if "generate" in abilities:
        return "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "Hello"}]}
    if "answer" in abilities:
        return "/v1/answer", {"model": name, "question": "Who was it?", "context": "It was Ada."}
    if "rerank" in abilities:
        return "/v1/rerank", {"model": name, "query": "snow", "documents": ["ice crystals", "a white horse"]}
    paths = {"embed": "/v1/embeddings", "classify": "/v1/classify", "tag": "/v1/tag"}
    for ability, path in paths.items():
        if ability in abilities:
            return path, {"model": name, "input": "Hello"}
    return "/v1/predict", {"model": name, "rows": [{"text": "Hello"}]}
