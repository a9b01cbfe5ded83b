"""`import weitiao`: quick, without torch; public names win over folders of the same name; components by class name."""

import os
import statistics
import subprocess
import sys
import time
from typing import Any

import pytest

import weitiao
from weitiao.core.namespace import class_names, find_class
from weitiao.core.registry import find, names


def python(code: str, **environment: str) -> str:
    variables = {key: x for key, x in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**variables, **environment}, check=True
    )
    return done.stdout.strip()


def test_import_takes_no_torch_and_little_time() -> None:
    """Less than 0.15 s more than Python itself, on a quiet machine; the test allows for a busy one."""
    code = "import sys, weitiao; print([x for x in ('torch', 'transformers', 'pydantic', 'rich') if x in sys.modules])"
    assert python(code) == "[]"

    def seconds(code: str) -> float:
        times = []
        for _ in range(5):
            started = time.process_time_ns(), os.times().children_user + os.times().children_system
            python(code)
            times.append(os.times().children_user + os.times().children_system - started[1])
        return statistics.median(times)

    assert seconds("import weitiao") - seconds("pass") < 0.15


def test_every_public_name_is_there() -> None:
    for name in weitiao.__all__:
        assert getattr(weitiao, name) is not None
    assert dir(weitiao) == sorted(weitiao.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        weitiao.trian  # noqa: B018


def test_functions_win_over_folders_of_the_same_name() -> None:
    code = (
        "import weitiao.train.settings, weitiao.evaluate.metrics\n"
        "from weitiao import train, evaluate\n"
        "from weitiao.train import settings\n"
        "assert callable(train) and callable(evaluate) and callable(weitiao.train), 'a folder hides a function'\n"
        "assert settings.Plan\n"
        "print('ok')"
    )
    assert python(code) == "ok"


@pytest.mark.parametrize("kind", ["method", "objective", "optimizer"])
def test_every_component_has_a_class_name(kind: str) -> None:
    module: Any = __import__(f"weitiao.{kind}s", fromlist=["x"])
    classes = class_names(kind)
    assert dir(module) == sorted(classes) and len(classes) == len(names(kind))
    for name in names(kind):
        cls = find(kind, name)
        assert getattr(module, cls.__name__) is cls


def test_unknown_class_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="there is no method 'Lora'. Did you mean 'LoRA'"):
        find_class("method", "Lora")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "1000 None"), ({"GOMP_SPINCOUNT": "7"}, "7 None"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None PASSIVE")],
)
def test_openmp_setting_unless_the_user_has_one(environment: dict, expected: str) -> None:
    code = "import weitiao, os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    assert python(code, **environment) == expected
