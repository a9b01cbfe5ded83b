"""Every kind of damage to a checkpoint: detected, set aside, the older one loaded, the end the same."""

import hashlib
import io
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from support.crashes import KILLED, CrashTest
from support.processes import KillAt
from support.proofs import Figure
from support.recovery import assert_same_as_uninterrupted
from weitiao.core.errors import RunError
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.pipeline import train as pipeline

MANIFEST = "MANIFEST.json"
FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", MANIFEST)
Harm = Callable[[Path], Any]  # does something to a state's folder


def truncated(name: str, to: Callable[[int], int]) -> Harm:
    return lambda state: (state / name).write_bytes((state / name).read_bytes()[: to((state / name).stat().st_size)])


def flipped(name: str, at: float, bit: int) -> Harm:
    """One bit is another, at this share of the file."""

    def flip(state: Path) -> None:
        whole = bytearray((state / name).read_bytes())
        whole[int(at * (len(whole) - 1))] ^= 1 << bit
        (state / name).write_bytes(whole)

    return flip


def written(name: str, content: str) -> Harm:
    return lambda state: (state / name).write_text(content)


def a_folder(name: str) -> Harm:
    def harm(state: Path) -> None:
        (state / name).unlink()
        (state / name).mkdir()

    return harm


def wrong_hash(state: Path) -> None:
    hashes = json.loads((state / MANIFEST).read_text())
    hashes["state.json"] = hashes["weights.safetensors"]
    (state / MANIFEST).write_text(json.dumps(hashes))


def harms() -> dict[str, Harm]:
    """All of them, by name."""
    found: dict[str, Harm] = {
        "an extra file": written("more.safetensors", "?"),
        "an empty folder": lambda state: [file.unlink() for file in state.iterdir()],
        "MANIFEST with a wrong hash": wrong_hash,
        "MANIFEST without a file": written(MANIFEST, "{}"),
        "MANIFEST not JSON": written(MANIFEST, "weights are fine"),
        "MANIFEST a list": written(MANIFEST, json.dumps(FILES[:-1])),
        "MANIFEST a number": written(MANIFEST, "5"),
        "MANIFEST null": written(MANIFEST, "null"),
    }
    for name in FILES:
        found[f"{name} empty"] = truncated(name, lambda size: 0)
        found[f"{name} half"] = truncated(name, lambda size: size // 2)
        found[f"{name} without its last byte"] = truncated(name, lambda size: size - 1)
        found[f"{name} deleted"] = lambda state, name=name: (state / name).unlink()
        found[f"{name} a folder"] = a_folder(name)
        for i, at in enumerate((0.0, 0.1, 0.35, 0.5, 0.75, 0.99, 1.0)):
            found[f"{name} bit {i} flipped at {at}"] = flipped(name, at, i)
    return found


@pytest.fixture(scope="module")
def killed(crash_test: CrashTest) -> Path:
    """A run that was killed when states 5 and 6 were there."""
    seventh = next(i for i, x in enumerate(crash_test.operations) if re.search(r"write checkpoints/\S*step-0*7\b", x))
    out = crash_test.new_folder()
    assert crash_test.start(out, KillAt(out, at=seventh)).wait() == KILLED
    assert {"step-000005", "step-000006"} <= {x.name for x in (out / "checkpoints").iterdir()}
    return out


class Bench:
    """Copies of the killed run, to be harmed and resumed in this process."""

    def __init__(self, crash_test: CrashTest, killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.crash_test, self.killed = crash_test, killed
        monkeypatch.setenv("WEITIAO_HOME", str(crash_test.fork_server.home))

    def copy(self) -> Path:
        return shutil.copytree(self.killed, self.crash_test.new_folder())

    def resume(self, out: Path) -> str:
        """-> what was printed."""
        said = io.StringIO()
        pipeline.resume(str(out), Reporter(Console(file=said, width=300)))
        return said.getvalue()


@pytest.fixture
def bench(crash_test: CrashTest, killed: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(crash_test, killed, monkeypatch)


def test_newest_checkpoint_damaged(bench: Bench, full: bool, record_figure: Figure) -> None:
    """It is noticed and said, state 5 is taken, and the run ends as if nothing had happened."""
    every = harms()
    chosen = list(every) if full else list(every)[::10]
    for name in chosen:
        out = bench.copy()
        every[name](out / "checkpoints" / "step-000006")
        said = bench.resume(out)
        assert "step-000006 is damaged (" in said and "renamed broken-step-000006" in said, f"{name}: {said}"
        assert "resuming from step 5" in said, name
        aside = out / "checkpoints" / "broken-step-000006"
        assert aside.is_dir(), name
        shutil.rmtree(aside)
        assert_same_as_uninterrupted(out, bench.crash_test.uninterrupted)
    said = f"{len(chosen)}/{len(chosen)} detected, set aside, resumed"
    record_figure(
        "one checkpoint damaged", "detected; the next older checkpoint is used; ends bit-identical", said, len(chosen)
    )


def test_every_damage_detected(bench: Bench, record_figure: Figure) -> None:
    """All harms in the short form too: looking is quick."""
    from weitiao.train.checkpoints.checkpoint import find_damage

    state = bench.copy() / "checkpoints" / "step-000006"
    assert not find_damage(state)
    missed, pristine = [], shutil.copytree(state, state.with_name("kept"))
    for name, harm in harms().items():
        harm(state)
        if not find_damage(state):
            missed.append(name)
        shutil.rmtree(state)
        shutil.copytree(pristine, state)
    assert not missed and not find_damage(state)
    n = len(harms())
    record_figure("every kind of damage is detected", "100 %", f"{n}/{n}", n)


def test_all_checkpoints_damaged(bench: Bench, full: bool, record_figure: Figure) -> None:
    """Refused with a sentence, at each attempt; nothing is loaded and nothing starts again."""
    every = harms()
    chosen = list(every)[:: 1 if full else 20]
    for name in chosen:
        out = bench.copy()
        for state in (out / "checkpoints").glob("step-*"):
            every[name](state)
        events = (out / "events.jsonl").read_bytes()
        for _ in range(2):
            with pytest.raises(RunError, match="no undamaged checkpoint to resume from"):
                bench.resume(out)
        after = (out / "events.jsonl").read_bytes()
        added = {json.loads(line)["event"] for line in after.removeprefix(events).splitlines()}
        assert after.startswith(events) and added <= {"phase", "end"}, name
        assert Run(out).status.state == "failed", name
    record_figure("all checkpoints damaged", "refused with a message", f"{len(chosen)}/{len(chosen)}", len(chosen))


class Bomb:
    """A pickle that leaves a trace when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.canary, "executed"))


def test_pickle_never_executed(bench: Bench, full: bool, tmp_path: Path, record_figure: Figure) -> None:
    """In the place of each file, the manifest forged to fit; under other tools' names; and as the result so far."""
    canary = tmp_path / "canary"
    bomb = pickle.dumps(Bomb(canary))
    pickle.loads(bomb)
    assert canary.exists()
    canary.unlink()
    others = ("pytorch_model.bin", "optimizer.pt", "rng_state.pth", "weights.pt", "training_args.bin", "state.pkl")
    places = [f"checkpoints/step-000006/{name}" for name in (*FILES, *others)]
    places += ["best/weights.safetensors", "best/weights.pt", "adapter/adapter_model.bin", "checkpoints/step-000007"]
    places = places if full else places[::5]
    for place in places:
        out = bench.copy()
        (out / place).parent.mkdir(exist_ok=True)
        (out / place).write_bytes(bomb)
        state = out / "checkpoints" / "step-000006"
        if place.startswith("checkpoints/step-000006") and not place.endswith(MANIFEST):
            files = {x.name: hashlib.sha256(x.read_bytes()).hexdigest() for x in state.iterdir() if x.name != MANIFEST}
            (state / MANIFEST).write_text(json.dumps(files))
        said = bench.resume(out)
        assert "is damaged" in said or not place.startswith("checkpoints"), f"{place}: {said}"
        assert not canary.exists(), place
    record_figure("pickles in a run folder", "never executed", f"{len(places)}/{len(places)} places", len(places))
