"""Other libraries' progress bars and warnings: kept off the terminal while a command runs."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("transformers", "torch", "accelerate", "huggingface_hub", "datasets", "bitsandbytes")
BARS = "HF_HUB_DISABLE_PROGRESS_BARS"


@contextmanager
def muted(on: bool = True) -> Iterator[None]:
    """Inside, libraries report errors only, and draw no bars; afterwards everything is as before.

    Args:
        on: False leaves them alone (`-v`).
    """
    if not on:
        yield
        return
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    bars = os.environ.get(BARS)
    os.environ[BARS] = "1"
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    was_drawn = _set_transformers_bars(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        _set_transformers_bars(was_drawn)
        os.environ.pop(BARS) if bars is None else os.environ.update({BARS: bars})


def _set_transformers_bars(drawn: bool) -> bool:
    """Whether transformers drew bars before; where it is not imported yet, nothing is changed."""
    if "transformers" not in sys.modules:
        return drawn
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled()
    (transformers_logging.enable_progress_bar if drawn else transformers_logging.disable_progress_bar)()
    return before
