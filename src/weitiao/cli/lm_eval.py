"""lm-evaluation-harness with the model `weitiao` (extra: weitiao[lm-eval]); its own command line.

python -m weitiao.cli.lm_eval --model weitiao --model_args target=runs/support --tasks arc_easy
"""

from importlib import import_module
from typing import Any


def main() -> None:
    """The harness's command, which knows our models."""
    from weitiao.pipeline.harness_model import register_model

    register_model()
    command: Any = import_module("lm_eval.__main__")
    command.cli_evaluate()


if __name__ == "__main__":
    main()
