"""The compiled kernels equal torch, deterministically; without them torch is used."""

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
    assert library.enabled(), library.state.disabled_reason


def make_batch(lengths: tuple[int, ...], prefix: int = 0) -> Batch:
    prefix_ids = list(range(1, prefix + 1))
    batch = pack(
        [
            {"input_ids": prefix_ids + list(range(1000 * i, 1000 * i + n - prefix)), "labels": [1] * n}
            for i, n in enumerate(lengths, 1)
        ]
    )
    return share_prefixes(batch) if prefix else batch


def random_qkv(
    batch: Batch, heads: int, kv_heads: int, width: int, value_width: int, num_queries: int | None = None
) -> list[Tensor]:
    tokens = len(batch.input_ids)
    sizes = (num_queries or tokens, heads, width), (tokens, kv_heads, width), (tokens, kv_heads, value_width)
    return [torch.randn(size, generator=torch.Generator().manual_seed(i)).to(BF16) for i, size in enumerate(sizes)]


def output_and_gradients(run: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradient of each input."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = run(*leaves)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


def relative_error(ours: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(ours, expected, strict=True))


CASES: dict[str, Any] = {
    "causal": dict(lengths=(70, 33, 33, 5, 1), shape=(9, 3, 64, 64)),
    "bidirectional": dict(lengths=(150, 130), shape=(4, 4, 32, 32), causal=False),
    "window": dict(lengths=(300, 130), shape=(4, 1, 256, 256), window=100),
    "bidirectional window, odd widths": dict(lengths=(150, 130, 7), shape=(4, 2, 48, 80), causal=False, window=50),
    "shared prefix": dict(lengths=(200, 130, 90), shape=(6, 2, 64, 64), prefix=60),
    "subset of queries": dict(lengths=(200, 130, 90), shape=(6, 2, 64, 64), num_queries=40, window=64),
    "subset of queries, shared prefix": dict(lengths=(200, 130, 90), shape=(6, 2, 64, 64), num_queries=40, prefix=60),
}


@needs_kernels
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_attention_kernel_error(name: str, threads: int) -> None:
    case = {"causal": True, "window": None, "prefix": 0, "num_queries": None, **CASES[name]}
    torch.set_num_threads(threads)
    batch = make_batch(case["lengths"], case["prefix"])
    assert isinstance(batch, PrefixSharedBatch) == bool(case["prefix"])
    query_tokens = None
    if case["num_queries"]:
        random = torch.Generator().manual_seed(3)
        query_tokens = torch.randperm(len(batch.input_ids), generator=random)[: case["num_queries"]].sort().values
    inputs = random_qkv(batch, *case["shape"], num_queries=case["num_queries"])

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, batch, causal=case["causal"], window=case["window"], query_tokens=query_tokens)

    exact = output_and_gradients(run, *(x.double() for x in inputs))  # torch's own, because kernels take only bf16
    with library.kernels_disabled():
        by_matmul = output_and_gradients(run, *inputs)
    ours = output_and_gradients(run, *inputs)
    assert relative_error(ours, exact) < 3.5e-3
    assert relative_error(ours, exact) < 1.2 * relative_error(by_matmul, exact)
    assert all(torch.equal(a, b) for a, b in zip(ours, output_and_gradients(run, *inputs)))


@needs_kernels
@pytest.mark.parametrize("gate", [SwiGLU, GeGLU])
def test_gate_kernels(gate: type) -> None:
    inputs = [x[0] for x in (torch.linspace(-30, 30, 4096)[None], torch.randn(1, 4096))]
    exact = output_and_gradients(gate.apply, *(x.to(BF16).double() for x in inputs))
    assert relative_error(output_and_gradients(gate.apply, *(x.to(BF16) for x in inputs)), exact) < 3e-3


@needs_kernels
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_kernels(offset: float) -> None:
    x, w = torch.randn(50, 64).to(BF16), torch.randn(64).to(BF16)

    def run(x: Tensor, w: Tensor) -> Tensor:
        return RMSNorm.apply(x, w, 1e-5, offset)

    with library.kernels_disabled():
        exact = output_and_gradients(run, x.float(), w.float())
    assert relative_error(output_and_gradients(run, x, w), exact) < 5e-3


@needs_kernels
@pytest.mark.parametrize("kind", ["plain", "scale", "bias"])
@pytest.mark.parametrize("vocab_size", [7, 48, 301, 5003])
@pytest.mark.parametrize("threads", [1, 3])
def test_lm_head_kernel(vocab_size: int, kind: str, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(vocab_size)
    scale, bias = 0.37 if kind == "scale" else 1.0, torch.randn(vocab_size) if kind == "bias" else None
    inputs = [torch.randn(400, 24).to(BF16), torch.randn(vocab_size, 24).to(BF16)]
    targets = torch.randint(0, vocab_size, (400,))
    targets[:2] = torch.tensor([0, vocab_size - 1])

    def run(h: Tensor, w: Tensor) -> Tensor:
        return LMHead(lambda: w, lambda: bias, scale, kernels=library.kernels_for_logits).logprobs(h, targets)

    def reference(h: Tensor, w: Tensor) -> Tensor:
        z = (h @ w.T + (0 if bias is None else bias)) * scale
        return z.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    exact = output_and_gradients(reference, *(x.double() for x in inputs))
    with library.kernels_disabled():
        by_torch = output_and_gradients(run, *inputs)
    ours = output_and_gradients(run, *inputs)
    assert ours[0].dtype == torch.float32 and relative_error(ours, exact) < 1.5e-2
    assert relative_error(ours, by_torch) < 2e-3 and relative_error(ours, exact) < 1.05 * relative_error(by_torch, exact)
    assert all(torch.equal(a, b) for a, b in zip(ours, output_and_gradients(run, *inputs)))


@needs_kernels
@pytest.mark.parametrize("wrong", [-100, -1, 48])
def test_lm_head_kernel_invalid_target_refused(wrong: int) -> None:
    head = LMHead(lambda: torch.ones(48, 16).to(BF16), lambda: None, kernels=library.kernels_for_logits)
    with pytest.raises(IndexError, match="outside the vocabulary of 48"):
        head.logprobs(torch.ones(2, 16).to(BF16), torch.tensor([3, wrong]))


@needs_kernels
def test_lm_head_kernel_keeps_non_finite() -> None:
    weight = torch.randn(300, 16).to(BF16)
    for value in (float("nan"), float("inf")):
        h = torch.randn(3, 16).to(BF16)
        h[1, 4] = value
        h.requires_grad_()
        out = LMHead(lambda: weight, lambda: None, kernels=library.kernels_for_logits).logprobs(h, torch.tensor([1, 2, 3]))
        out.sum().backward()
        assert out.isnan().tolist() == [False, True, False]
        assert h.grad is not None and h.grad[1].isnan().all() and not h.grad[[0, 2]].isnan().any()


@needs_kernels
def test_kernels_keep_non_finite() -> None:
    batch = make_batch((20, 9))
    for value in range(3):
        inputs = random_qkv(batch, 4, 2, 64, 64)
        inputs[value][3, 0, 5] = float("nan")
        q, k, v = inputs
        out = attend(q, k, v, batch)
        assert out.isnan().any() and not out[20:].isnan().any()
    x = torch.full((1, 64), float("inf")).to(BF16)
    assert SwiGLU.apply(x, x).isinf().all() and RMSNorm.apply(x, torch.ones(64), 1e-5).isnan().any()


@needs_kernels
def test_kernels_read_strided_views() -> None:
    batch = make_batch((40, 9))
    both = torch.randn(49, 8, 128).to(BF16)
    q, k, v = both[:, :4, 32:96], both[:, 4:6, 1:65], both[:, ::4, 64:]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, batch)

    ours = output_and_gradients(run, q, k, v)
    assert relative_error(ours, output_and_gradients(run, *(x.contiguous() for x in (q, k, v)))) == 0
    assert torch.equal(attend(q, k, v, batch), ours[0])


@needs_kernels
def test_kernels_fall_back_to_torch() -> None:
    for x in (torch.randn(4, 16), torch.randn(4, 24).to(BF16)):
        assert library.kernels_for(x) is None
    assert library.kernels_for(torch.randn(4, 16).to(BF16)) is not None
    with library.kernels_disabled():
        assert library.kernels_for(torch.randn(4, 16).to(BF16)) is None


@needs_kernels
def test_wrong_kernels_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "state", library.State())
    assert library.check_kernels(CPU, BF16, kernel_check.max_relative_error)[0].value == "compiled"
    (decision,) = library.check_kernels(CPU, BF16, lambda: 0.5)
    assert (decision.value, str(decision.reason)) == (
        "off",
        "pure torch: on random numbers they differ from torch by 5e-01",
    )
    assert library.kernels_for(torch.randn(4, 16).to(BF16)) is None


def test_no_message_where_kernels_are_not_needed() -> None:
    assert library.check_kernels(CPU, torch.float32, lambda: 0.0) == []


def kernel_decision(home: Path, **environment: str) -> str:
    """The decision about kernels in a new process."""
    code = (
        "import torch; from weitiao.model.kernels import library; from weitiao.model.layers import kernel_check\n"
        "print(library.check_kernels(torch.device('cpu'), torch.bfloat16, kernel_check.max_relative_error)[0])"
    )
    inputs = {**os.environ, "WEITIAO_HOME": str(home), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=inputs, capture_output=True, text=True, check=True)
    return done.stdout


@needs_kernels
def test_damaged_library_rebuilt(tmp_path: Path) -> None:
    assert "value='compiled'" in kernel_decision(tmp_path)
    (library,) = (tmp_path / "kernels").glob("*.so")
    assert len(list(library.parent.iterdir())) == 2  # and its checksum
    data = library.read_bytes()
    library.write_bytes(data[: len(data) // 2])
    assert "value='compiled'" in kernel_decision(tmp_path)
    assert library.stat().st_size == len(data)
    library.with_suffix(".sha256").write_bytes(b"\xff\xfe")
    assert "value='compiled'" in kernel_decision(tmp_path)
    assert "value='compiled'" in kernel_decision(tmp_path, CXX="g++ -O1") and len(list(library.parent.glob("*.so"))) == 2


@needs_kernels
def test_slow_compiler_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "TIMEOUT", 1)
    start = time.monotonic()
    with pytest.raises(OSError, match="took more than 1 second"):
        library._run(["sleep", "30"], ["sleep", "30"])
    assert time.monotonic() - start < 10


@needs_kernels
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "there is no no-such-compiler"),
        ({"WEITIAO_KERNELS": "off"}, "WEITIAO_KERNELS is off"),
        ({"CXX": "false"}, "could not"),
        ({"CXX": 'g++ "'}, "No closing quotation"),
    ],
)
def test_missing_compiler_message(tmp_path: Path, environment: dict[str, str], reason: str) -> None:
    decision = kernel_decision(tmp_path, **environment)
    assert "value='off'" in decision and reason in decision


@needs_kernels
def test_compiler_with_arguments_and_leftover_files(tmp_path: Path) -> None:
    left, running = tmp_path / "kernels" / "tmp_left", tmp_path / "kernels" / "tmp_running"
    for folder in (left, running):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))
    assert "value='compiled'" in kernel_decision(tmp_path, CXX="env g++")
    assert not left.exists() and running.exists()


@needs_kernels
def test_unwritable_cache_folder(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("a file, where a folder should be")
    assert "value='off'" in kernel_decision(tmp_path)
