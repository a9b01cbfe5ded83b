"""The command that serves: an OpenAI-compatible server and a chat page, on this machine unless it is told otherwise."""

from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console

from weitiao.cli.option_group import option_group
from weitiao.cli.run_command import split_pairs, usage_error
from weitiao.core.errors import ModelError
from weitiao.core.messages import Message

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "httpx")
ENGINES = ("own", "vllm", "llamacpp")

OPENING: dict[str, tuple[Any, Any]] = {
    "precision": (Annotated[str, typer.Option(help="bf16, fp32 or fp16; auto: as trained.")], "auto"),
    "overlong": (
        Annotated[
            str,
            typer.Option(
                help="Conversations that are too long: error; drop_turns: leave out exchanges; auto: drop_turns if "
                "trained with it."
            ),
        ],
        "auto",
    ),
}


@option_group("opening", OPENING, dict)
def serve(
    targets: Annotated[
        list[str],
        typer.Argument(help="A run, an adapter or a model folder, or several adapters on one base; NAME=FOLDER names it."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any that is free.")] = 8000,
    api_key_file: Annotated[
        list[str] | None,
        typer.Option(help="A file with keys, one a line, KEY or NAME:KEY; repeatable. Or set WEITIAO_API_KEY."),
    ] = None,
    random_key: Annotated[bool, typer.Option("--random-key", help="Make a key, and print it once.")] = False,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name under which the server is reached (a proxy's); repeatable.")
    ] = None,
    adapters_dir: Annotated[
        str, typer.Option(help="A folder of adapters on the same base, loaded when they are asked for.")
    ] = "",
    engine: Annotated[str, typer.Option(help="own; or vllm, llamacpp: run as a child, behind the same front.")] = "own",
    limit: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE: max_queue, max_cpu_loras, requests_per_minute ...; repeatable.")
    ] = None,
    *,
    opening: dict[str, str],
) -> None:
    """Serve models over HTTP, as OpenAI's clients expect it, with a chat page."""
    if missing := [x for x in PACKAGES if find_spec(x) is None]:
        raise ModelError("serve needs {package}. Install it with: pip install 'weitiao[serve]'", package=missing[0])
    if engine not in ENGINES:
        raise usage_error("--engine: there is no {engine!r}; there are: {known}", engine=engine, known=", ".join(ENGINES))
    from weitiao.core.reporter import Reporter

    reporter = Reporter(Console(highlight=False))
    with reporter.spin(Message("loading torch and transformers")):
        from weitiao.pipeline.server import ServeOptions
        from weitiao.pipeline.server import serve as run

    precision = opening["precision"]
    options = ServeOptions(
        targets=targets,
        host=host,
        port=port,
        api_key_files=tuple(api_key_file or ()),
        random_key=random_key,
        allowed_hosts=tuple(allowed_host or ()),
        adapters_dir=adapters_dir,
        precision="" if precision == "auto" else precision,
        overlong=opening["overlong"],
        limits=split_pairs(limit, "--limit"),
        engine=engine,
    )
    run(options, reporter)
