"""The compiled kernels give what torch gives, the same bits each time; without them everything goes its usual way."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.kernels import needs_kernels
from weitiao.core.batch import Batch, pack
from weitiao.core.lm_head import LMHead
from weitiao.core.shared_prefix import PrefixSharedBatch, share_prefixes
from weitiao.model.kernels import library
from weitiao.model.layers import kernel_check
from weitiao.model.layers.attention import attend
from weitiao.model.layers.fused import GeGLU, RMSNorm, SwiGLU

CPU, BF16 = torch.device("cpu"), torch.bfloat16


@needs_kernels
def test_kernels_in_use() -> None:
    assert library.in_use(), library.state.why_not


def rows(lengths: tuple[int, ...], alike: int = 0) -> Batch:
    begun = list(range(1, alike + 1))
    batch = pack(
        [
            {"input_ids": begun + list(range(1000 * i, 1000 * i + n - alike)), "labels": [1] * n}
            for i, n in enumerate(lengths, 1)
        ]
    )
    return share_prefixes(batch) if alike else batch


def asked(batch: Batch, heads: int, keys: int, wide: int, values: int, many: int | None = None) -> list[Tensor]:
    tokens = len(batch.input_ids)
    sizes = (many or tokens, heads, wide), (tokens, keys, wide), (tokens, keys, values)
    return [torch.randn(size, generator=torch.Generator().manual_seed(i)).to(BF16) for i, size in enumerate(sizes)]


def back(run: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """What comes of it, and each gradient."""
    inputs = [x.clone().requires_grad_() for x in given]
    out = run(*inputs)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype))
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]


def far(mine: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(mine, theirs, strict=True))


CASES: dict[str, Any] = {
    "causal": dict(lengths=(70, 33, 33, 5, 1), shape=(9, 3, 64, 64)),
    "both ways": dict(lengths=(150, 130), shape=(4, 4, 32, 32), causal=False),
    "window": dict(lengths=(300, 130), shape=(4, 1, 256, 256), window=100),
    "window both ways, odd widths": dict(lengths=(150, 130, 7), shape=(4, 2, 48, 80), causal=False, window=50),
    "begins alike": dict(lengths=(200, 130, 90), shape=(6, 2, 64, 64), alike=60),
    "some ask": dict(lengths=(200, 130, 90), shape=(6, 2, 64, 64), ask=40, window=64),
    "some ask, begins alike": dict(lengths=(200, 130, 90), shape=(6, 2, 64, 64), ask=40, alike=60),
}


@needs_kernels
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_attention_kernel_error(name: str, threads: int) -> None:
    case = {"causal": True, "window": None, "alike": 0, "ask": None, **CASES[name]}
    torch.set_num_threads(threads)
    batch = rows(case["lengths"], case["alike"])
    assert isinstance(batch, PrefixSharedBatch) == bool(case["alike"])
    asking = None
    if case["ask"]:
        random = torch.Generator().manual_seed(3)
        asking = torch.randperm(len(batch.input_ids), generator=random)[: case["ask"]].sort().values
    given = asked(batch, *case["shape"], many=case["ask"])

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, batch, causal=case["causal"], window=case["window"], rows=asking)

    exact = back(run, *(x.double() for x in given))  # torch's own: kernels take bf16 alone
    with library.left_out():
        products = back(run, *given)
    mine = back(run, *given)
    assert far(mine, exact) < 3.5e-3
    assert far(mine, exact) < 1.2 * far(products, exact)
    assert all(torch.equal(a, b) for a, b in zip(mine, back(run, *given)))


@needs_kernels
@pytest.mark.parametrize("gate", [SwiGLU, GeGLU])
def test_gate_kernels(gate: type) -> None:
    given = [x[0] for x in (torch.linspace(-30, 30, 4096)[None], torch.randn(1, 4096))]
    exact = back(gate.apply, *(x.to(BF16).double() for x in given))
    assert far(back(gate.apply, *(x.to(BF16) for x in given)), exact) < 3e-3


@needs_kernels
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_kernels(offset: float) -> None:
    x, w = torch.randn(50, 64).to(BF16), torch.randn(64).to(BF16)

    def run(x: Tensor, w: Tensor) -> Tensor:
        return RMSNorm.apply(x, w, 1e-5, offset)

    with library.left_out():
        exact = back(run, x.float(), w.float())
    assert far(back(run, x, w), exact) < 5e-3


@needs_kernels
@pytest.mark.parametrize("kind", ["plain", "scale", "bias"])
@pytest.mark.parametrize("words", [7, 48, 301, 5003])
@pytest.mark.parametrize("threads", [1, 3])
def test_lm_head_kernel(words: int, kind: str, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(words)
    scale, bias = 0.37 if kind == "scale" else 1.0, torch.randn(words) if kind == "bias" else None
    given = [torch.randn(400, 24).to(BF16), torch.randn(words, 24).to(BF16)]
    targets = torch.randint(0, words, (400,))
    targets[:2] = torch.tensor([0, words - 1])

    def run(h: Tensor, w: Tensor) -> Tensor:
        return LMHead(lambda: w, lambda: bias, scale, kernels=library.for_words).logprobs(h, targets)

    def exactly(h: Tensor, w: Tensor) -> Tensor:
        z = (h @ w.T + (0 if bias is None else bias)) * scale
        return z.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    exact = back(exactly, *(x.double() for x in given))
    with library.left_out():
        by_torch = back(run, *given)
    mine = back(run, *given)
    assert mine[0].dtype == torch.float32 and far(mine, exact) < 1.5e-2
    assert far(mine, by_torch) < 2e-3 and far(mine, exact) < 1.05 * far(by_torch, exact)
    assert all(torch.equal(a, b) for a, b in zip(mine, back(run, *given)))


@needs_kernels
@pytest.mark.parametrize("wrong", [-100, -1, 48])
def test_lm_head_kernel_invalid_target_refused(wrong: int) -> None:
    head = LMHead(lambda: torch.ones(48, 16).to(BF16), lambda: None, kernels=library.for_words)
    with pytest.raises(IndexError, match="the vocabulary has 48"):
        head.logprobs(torch.ones(2, 16).to(BF16), torch.tensor([3, wrong]))


@needs_kernels
def test_lm_head_kernel_keeps_non_finite() -> None:
    weight = torch.randn(300, 16).to(BF16)
    for spoilt in (float("nan"), float("inf")):
        h = torch.randn(3, 16).to(BF16)
        h[1, 4] = spoilt
        h.requires_grad_()
        out = LMHead(lambda: weight, lambda: None, kernels=library.for_words).logprobs(h, torch.tensor([1, 2, 3]))
        out.sum().backward()
        assert out.isnan().tolist() == [False, True, False]
        assert h.grad is not None and h.grad[1].isnan().all() and not h.grad[[0, 2]].isnan().any()


@needs_kernels
def test_kernels_keep_non_finite() -> None:
    batch = rows((20, 9))
    for spoilt in range(3):
        given = asked(batch, 4, 2, 64, 64)
        given[spoilt][3, 0, 5] = float("nan")
        q, k, v = given
        out = attend(q, k, v, batch)
        assert out.isnan().any() and not out[20:].isnan().any()
    x = torch.full((1, 64), float("inf")).to(BF16)
    assert SwiGLU.apply(x, x).isinf().all() and RMSNorm.apply(x, torch.ones(64), 1e-5).isnan().any()


@needs_kernels
def test_kernels_read_strided_views() -> None:
    batch = rows((40, 9))
    both = torch.randn(49, 8, 128).to(BF16)
    q, k, v = both[:, :4, 32:96], both[:, 4:6, 1:65], both[:, ::4, 64:]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, batch)

    mine = back(run, q, k, v)
    assert far(mine, back(run, *(x.contiguous() for x in (q, k, v)))) == 0
    assert torch.equal(attend(q, k, v, batch), mine[0])


@needs_kernels
def test_kernels_fall_back_to_torch() -> None:
    for x in (torch.randn(4, 16), torch.randn(4, 24).to(BF16)):
        assert library.usable(x) is None
    assert library.usable(torch.randn(4, 16).to(BF16)) is not None
    with library.left_out():
        assert library.usable(torch.randn(4, 16).to(BF16)) is None


@needs_kernels
def test_wrong_kernels_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "state", library.State(""))
    assert library.choose(CPU, BF16, kernel_check.largest_gap)[0].value == "compiled"
    (choice,) = library.choose(CPU, BF16, lambda: 0.5)
    assert (choice.value, str(choice.reason)) == ("off", "pure torch: on a probe they differ from torch by 5e-01")
    assert library.usable(torch.randn(4, 16).to(BF16)) is None


def test_no_message_where_kernels_are_not_needed() -> None:
    assert library.choose(CPU, torch.float32, lambda: 0.0) == []


def told(home: Path, **environment: str) -> str:
    """What a process of its own says of the kernels."""
    code = (
        "import torch; from weitiao.model import compiled, kernel_proof\n"
        "print(library.choose(torch.device('cpu'), torch.bfloat16, kernel_check.largest_gap)[0])"
    )
    given = {**os.environ, "WEITIAO_HOME": str(home), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    return done.stdout


@needs_kernels
def test_damaged_library_rebuilt(tmp_path: Path) -> None:
    assert "value='compiled'" in told(tmp_path)
    (library,) = (tmp_path / "kernels").glob("*.so")
    assert len(list(library.parent.iterdir())) == 2  # and its checksum
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])
    assert "value='compiled'" in told(tmp_path)
    assert library.stat().st_size == len(whole)
    library.with_suffix(".sha256").write_bytes(b"\xff\xfe")
    assert "value='compiled'" in told(tmp_path)
    assert "value='compiled'" in told(tmp_path, CXX="g++ -O1") and len(list(library.parent.glob("*.so"))) == 2


@needs_kernels
def test_slow_compiler_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "PATIENCE", 1)
    begun = time.monotonic()
    with pytest.raises(OSError, match="took more than 1 second"):
        library._run(["sleep", "30"], ["sleep", "30"])
    assert time.monotonic() - begun < 10


@needs_kernels
@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"CXX": "no-such-compiler"}, "there is no no-such-compiler"),
        ({"WEITIAO_KERNELS": "off"}, "WEITIAO_KERNELS is off"),
        ({"CXX": "false"}, "could not"),
        ({"CXX": 'g++ "'}, "No closing quotation"),
    ],
)
def test_missing_compiler_message(tmp_path: Path, environment: dict[str, str], why: str) -> None:
    said = told(tmp_path, **environment)
    assert "value='off'" in said and why in said


@needs_kernels
def test_compiler_with_arguments_and_leftover_files(tmp_path: Path) -> None:
    left, running = tmp_path / "kernels" / "tmp_left", tmp_path / "kernels" / "tmp_running"
    for folder in (left, running):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))
    assert "value='compiled'" in told(tmp_path, CXX="env g++")
    assert not left.exists() and running.exists()


@needs_kernels
def test_unwritable_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file, where a folder should be")
    assert "value='off'" in told(tmp_path)
