"""The sandbox: right programs pass, and what is hostile is stopped and harms nothing."""

import os
import sys
import time
from pathlib import Path

import pytest

from support.sandbox import has_sandbox
from weitiao.core.metric import Metric
from weitiao.core.registry import create
from weitiao.evaluate.sandbox import Limits, code_of, run_program, run_programs

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not has_sandbox(), reason="this kernel has no Landlock or no seccomp"
)
SHORT = Limits(seconds=3.0)


def test_right_and_wrong_programs() -> None:
    right = "import math, json, collections\ndef f(x):\n    return x + 1\nassert f(1) == 2 and math.pi > 3"
    writes = "open('x', 'w').write('y'); assert open('x').read() == 'y'"
    outcomes = run_programs([right, "assert 1 == 2, 'no'", "def f(:", writes])
    assert [x.passed for x in outcomes] == [True, False, False, True], outcomes
    assert outcomes[1].reason == "AssertionError: no" and outcomes[2].reason.startswith("SyntaxError")


def test_threads_may_be_made() -> None:
    code = "import threading\nx = []\nt = threading.Thread(target=lambda: x.append(1))\nt.start(); t.join(); assert x"
    assert run_program(code).passed


ESCAPES = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "process": "import subprocess\nsubprocess.run(['true'])",
    "shell": "import os\nassert os.system('true') == 0",
    "another program": "import os\nos.execv('/bin/true', ['true'])",
    "network": "import socket\nsocket.socket().connect(('127.0.0.1', 80))",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "kill parent": "import os\nos.kill(os.getppid(), 9)",
    "kill all": "import os\nos.kill(-1, 9)",
    "stop parent by thread": "import signal, os\nsignal.pthread_kill(0, 0)\nos.killpg(0, 9)",
    "write outside": "open({outside!r}, 'w')",
    "remove outside": "import os\nos.remove({outside!r})",
    "rename in": "import os\nos.rename({outside!r}, 'here')",
    "link in": "import os\nos.link({outside!r}, 'here'); open('here', 'a')",
    "symbolic link": "import os\nos.symlink({outside!r}, 'here'); open('here', 'w')",
    "read outside": "open({outside!r}).read()",
    "list home": "import os\nos.listdir(os.path.expanduser('~'))",
    "passwords": "open('/etc/passwd').read()",
    "other process": "import os\nopen('/proc/%d/environ' % os.getppid()).read()",
    "raise limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "trace parent": "import ctypes, os\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "namespaces": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "exit": "import sys\nsys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "memory": "x = bytearray(3 * 2**30)",
    "growing memory": "x = []\nwhile True: x.append(bytearray(2**20))",
    "open files": "x = [open('/dev/null') for _ in range(1000)]",
    "long file": "f = open('x', 'wb')\nwhile True: f.write(b'x' * 2**20)",
    "many files": "import time\nfor i in range(10**6): open(str(i), 'wb').write(b'x' * 4096)",
    "much output": "import sys\nwhile True: sys.stderr.write('x' * 2**16)",
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(60)",
    "deaf to signals": "import signal\nfor s in (1, 2, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "recursion": "def f(): return f()\nf()",
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_hostile_program_fails_and_harms_nothing(kind: str, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_text("unharmed")
    tmp_path.chmod(0o777)
    outside.chmod(0o666)  # what a file's own mode would allow
    start = time.monotonic()
    outcome = run_program(ESCAPES[kind].replace("{outside!r}", repr(str(outside))), SHORT)
    assert not outcome.passed and outcome.reason, outcome
    assert time.monotonic() - start < SHORT.seconds + 10
    assert outside.read_text() == "unharmed" and sorted(tmp_path.iterdir()) == [outside]
    assert os.getppid()  # and this process lives


def test_nothing_is_left_behind() -> None:
    import tempfile

    before = set(Path(tempfile.gettempdir()).glob("weitiao-sandbox-*"))
    run_programs(["open('x', 'w')", "while True: pass"], Limits(seconds=1.0))
    assert set(Path(tempfile.gettempdir()).glob("weitiao-sandbox-*")) <= before


def test_code_of_an_answer() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("Here:\n```python\nx = 1\ny = 2\n```\nand\n```\nz\n```") == "x = 1\ny = 2"
    assert code_of("```py\nx = 1") == "x = 1"  # cut off


def test_code_pass_metric() -> None:
    tests = "assert add(1, 2) == 3"
    pairs = [("```python\ndef add(a, b):\n    return a + b\n```", tests), ("def add(a, b): return a - b", tests)]
    score = create(Metric, "code_pass").score(pairs)
    assert (score.value, score.n, score.interval) == (0.5, 2, "wilson")
