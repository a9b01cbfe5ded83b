"""`weitiao doctor`: what was looked at, as lines and as JSON; every extra of the wheel is known."""

import json
import re
from pathlib import Path

import pytest

from support.command import weitiao
from weitiao.pipeline import doctor

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def test_lines_and_verdict() -> None:
    code, said = weitiao("doctor")
    assert code == 0 and "ready to train on the CPU" in said and "cores usable" in said and "GB memory free" in said
    assert re.search(r"OpenMP: (GOMP_SPINCOUNT|OMP_WAIT_POLICY)=\w+", said)


def test_json_has_every_check() -> None:
    code, said = weitiao("doctor", "--json")
    record = json.loads(said)
    names = {x["name"] for x in record["checks"]}
    assert code == 0 and record["verdict"].startswith("ready")
    assert {"python", "torch", "cpu", "memory", "bf16", "kernels", "openmp", "gpu", "load", "disk cache"} <= names
    assert {x["status"] for x in record["checks"]} <= {"ok", "warning", "missing"}


def test_every_extra_is_known() -> None:
    text = PYPROJECT.read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert doctor.EXTRAS.keys() == set(re.findall(r"^([\w-]+) = \[", text, re.M)) - {"dev"}


def test_missing_package_and_busy_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.psutil, "cpu_percent", lambda interval: 80.0)
    diagnosis = doctor.diagnose()
    missing = next(x for x in diagnosis.checks if x.name == "optional peft")
    assert missing.status == "missing" and "pip install 'weitiao[peft]'" in str(missing.message)
    assert "But: other programs use 80% of the CPU" in str(diagnosis.verdict)
