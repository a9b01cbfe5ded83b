"""lm-evaluation-harness with the model `weitiao` (extra: weitiao[lm-eval]); its own command line.

python -m weitiao.cli.lm_eval --model weitiao --model_args target=runs/support --tasks arc_easy
"""


def main() -> None:
    """The harness's command, which knows our models."""
    from weitiao.pipeline.harness_model import register_model

    register_model()
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    main()
