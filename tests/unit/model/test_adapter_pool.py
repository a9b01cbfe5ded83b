"""Adapters in slots: grouping of rows, adding, replacing, removing and evicting, while others stay as they are."""

import random
import threading

import pytest
import torch

from support.laws import attached, gap
from support.models import make_model
from weitiao.core.errors import ModelError
from weitiao.core.method import Method
from weitiao.core.registry import find
from weitiao.model.adapters import adapter_stack
from weitiao.model.adapters.adapter_pool import AdapterPool
from weitiao.model.adapters.adapter_stack import MAX_GATHERED, MultiAdapterLinear
from weitiao.model.adapters.adapter_weights import Factors, LowRankAdapter, detach
from weitiao.model.adapters.row_routing import BASE, LARGE, Bucket, make_plan

CPU = torch.device("cpu")
WIDTH = 32


def lora(seed: int, rank: int = 4, layers: tuple[str, ...] = ("q_proj", "v_proj"), scale: float = 1.0) -> LowRankAdapter:
    """A random adapter for the tiny llama's attention."""
    key = torch.Generator().manual_seed(seed)
    outs = {"q_proj": 32, "k_proj": 16, "v_proj": 16, "o_proj": 32}
    factors = {
        f"model.layers.{i}.self_attn.{name}": Factors(
            torch.randn(rank, WIDTH, generator=key) * 0.2, torch.randn(outs[name], rank, generator=key) * 0.2, scale
        )
        for i in range(3)
        for name in layers
    }
    return LowRankAdapter(factors)


@torch.no_grad()
def logits(pool: AdapterPool, names: list[str], seed: int = 0) -> torch.Tensor:
    """[rows, 5, V], padded."""
    ids = torch.randint(3, 320, (len(names), 5), generator=torch.Generator().manual_seed(seed))
    with pool.select(names):
        return pool.model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def changed_base(adapter: LowRankAdapter | None) -> torch.nn.Module:
    """The tiny llama with the adapter merged into its weights: the judge."""
    model = make_model()
    for name, (a, b, scale) in (adapter.factors if adapter else {}).items():
        model.get_submodule(name).weight.add_(scale * b @ a)
    return model


@torch.no_grad()
def assert_rows(pool: AdapterPool, names: list[str], adapters: dict[str, LowRankAdapter]) -> None:
    got = logits(pool, names)
    ids = torch.randint(3, 320, (len(names), 5), generator=torch.Generator().manual_seed(0))
    for row, name in enumerate(names):
        wanted = changed_base(adapters.get(name))(input_ids=ids[row : row + 1], use_cache=False).logits[0]
        assert gap(got[row], wanted) <= 1e-5, (row, name)


# -- grouping ---------------------------------------------------------------------------------------------------------


def tokens_of(bucket: Bucket, k: int) -> list[int]:
    source = list(range(1000))[bucket.source] if isinstance(bucket.source, slice) else bucket.source.tolist()
    return source[k * bucket.width : (k + 1) * bucket.width]


def test_every_token_in_one_group() -> None:
    """Random batches: each token of an adapter is in exactly one group, of its own slot; less than half is padding."""
    rng = random.Random(0)
    for _ in range(300):
        rows = rng.randrange(1, 12)
        slots = [rng.choice([BASE, 0, 1, 2, 5, 9]) for _ in range(rows)]
        lengths = [rng.choice([0, 1, 1, 1, 2, 7, 40]) for _ in range(rows)]
        owner = [slot for slot, n in zip(slots, lengths) for _ in range(n)]
        plan = make_plan(slots, lengths, {9}, CPU)
        seen: dict[int, int] = {}
        for group in (*plan.groups, *plan.looped):
            for i in torch.arange(len(owner))[group.rows].tolist():
                assert i not in seen
                seen[i] = group.slot
        assert {x.slot for x in plan.looped} <= {9}
        for bucket in plan.buckets:
            places = list(range(len(bucket.target))) if bucket.positions is None else bucket.positions.tolist()
            assert len(places) > len(bucket.slots) * bucket.width / 2 or bucket.width == 1
            for k, slot in enumerate(bucket.slots):
                assert {owner[i] for i in tokens_of(bucket, k)} == {slot}, "padding is of the same adapter"
            flat = [i for k in range(len(bucket.slots)) for i in tokens_of(bucket, k)]
            for target, place in zip(bucket.target.tolist(), places):
                assert flat[place] == target and target not in seen
                seen[target] = bucket.slots[place // bucket.width]
        assert [seen.get(i, BASE) for i in range(len(owner))] == owner


def test_decoding_needs_no_index() -> None:
    """One token a row, slots in order: the batch itself is the group, and large groups are slices."""
    (bucket,) = make_plan(range(8), [1] * 8, (), CPU).buckets
    assert bucket.source == slice(0, 8) and bucket.positions is None and bucket.slots == tuple(range(8))
    (group,) = make_plan([3] * 8, [1] * 8, (), CPU).groups
    assert group.rows == slice(0, 8)
    plan = make_plan([0, 1, 1], [LARGE, LARGE, LARGE], (), CPU)
    assert [x.rows for x in plan.groups] == [slice(0, LARGE), slice(LARGE, 3 * LARGE)] and not plan.buckets


# -- slots ------------------------------------------------------------------------------------------------------------


def test_ranks_and_targets_differ() -> None:
    """Ranks 1 to 9, other layers, rsLoRA's scale: every row as if merged, in any company."""
    pool = AdapterPool(make_model())
    targets = [("q_proj",), ("q_proj", "v_proj"), ("k_proj", "o_proj"), ("o_proj",)]
    adapters = {f"a{i}": lora(i, 1 + 2 * i % 9, targets[i % 4], 7 / 5**0.5) for i in range(7)}
    for name, adapter in adapters.items():
        pool.add(name, adapter)
    assert_rows(pool, [*adapters, "", "a3", "a0"], adapters)
    assert_rows(pool, ["a6", "a2", "a2", "a5"], adapters)
    assert_rows(pool, ["", ""], adapters)


def test_replace_and_remove_leave_others() -> None:
    pool = AdapterPool(make_model())
    adapters = {x: lora(i) for i, x in enumerate("abc")}
    for name, adapter in adapters.items():
        pool.add(name, adapter)
    before, version = logits(pool, ["a", "b", "c"]), pool.version("b")
    adapters["b"] = lora(9, rank=2, layers=("o_proj",))
    pool.add("b", adapters["b"])
    after = logits(pool, ["a", "b", "c"])
    assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2])
    assert pool.version("b") > version and pool.version("a") != pool.version("c")
    assert_rows(pool, ["b", "a", ""], adapters)
    pool.remove("a")
    assert torch.equal(logits(pool, ["c", "b", "c"])[1], logits(pool, ["c", "b", "c"])[1])
    with pytest.raises(ModelError, match="no adapter called 'a'; there are: c, b"):
        logits(pool, ["a"])
    pool.add("d", lora(11))
    assert_rows(pool, ["d", "b", "c"], {**adapters, "d": lora(11)})
    for name in ("b", "c", "d"):
        pool.remove(name)
    assert torch.equal(logits(pool, ["", ""]), make_model()(input_ids=ids_of(2), use_cache=False).logits)


def ids_of(rows: int) -> torch.Tensor:
    return torch.randint(3, 320, (rows, 5), generator=torch.Generator().manual_seed(0))


def test_stale_weights_of_a_slot() -> None:
    """A slot that had NaN in a layer that its next adapter does not change: nothing of it is left."""
    pool = AdapterPool(make_model())
    broken = lora(0, rank=8)
    for a, _, _ in broken.factors.values():
        a.fill_(float("nan"))
    pool.add("broken", broken)
    pool.add("good", lora(1))
    assert logits(pool, ["broken", "good"])[0].isnan().all() and logits(pool, ["broken", "good"])[1].isfinite().all()
    pool.remove("broken")
    adapters = {"next": lora(2, layers=("o_proj",)), "good": lora(1)}
    pool.add("next", adapters["next"])
    assert_rows(pool, ["next", "good"], adapters)


def test_least_recently_used_is_evicted() -> None:
    """A hundred listed, four in memory; each answers as it should whenever it is named."""
    pool, reads = AdapterPool(make_model(), max_loras=4), []

    def read(i: int) -> LowRankAdapter:
        reads.append(i)
        return lora(i)

    for i in range(100):
        pool.register(f"u{i}", lambda i=i: read(i))
    assert len(pool.names) == 100 and not pool.loaded and not reads
    adapters = {f"u{i}": lora(i) for i in range(100)}
    for batch in (["u1", "u2"], ["u3", "u4", "u1"], ["u5"], ["u1", "u2"]):
        assert_rows(pool, batch, adapters)
        assert len(pool.loaded) <= 4
    assert reads == [1, 2, 3, 4, 5, 2], "u2 was the least recently used when u5 came"
    assert_rows(pool, [f"u{i}" for i in range(20, 27)], adapters)
    assert len(pool.loaded) == 7, "a batch that needs more gets more"
    layer = next(iter(pool.layers.values()))
    assert layer.a.shape[0] < 16


def test_without_a_file_never_evicted() -> None:
    pool = AdapterPool(make_model(), max_loras=2)
    for i in range(3):
        pool.add(f"live{i}", lora(i))
    pool.register("disk", lambda: lora(7))
    adapters = {"live0": lora(0), "live1": lora(1), "live2": lora(2), "disk": lora(7)}
    assert_rows(pool, ["disk", "live0"], adapters)
    assert_rows(pool, ["live1", "live2"], adapters)
    assert set(pool.loaded) == set(adapters)


def test_failed_read_changes_nothing() -> None:
    pool = AdapterPool(make_model())
    pool.add("a", lora(0))

    def fail() -> LowRankAdapter:
        raise ModelError("gone")

    pool.register("b", fail)
    with pytest.raises(ModelError, match="gone"):
        logits(pool, ["a", "b"])
    misfit = Factors(torch.ones(2, 5), torch.ones(3, 2), 1.0)
    with pytest.raises(RuntimeError):
        pool.add("c", LowRankAdapter({**lora(1).factors, "model.layers.0.self_attn.k_proj": misfit}))
    assert pool.names == ("a", "b")
    assert_rows(pool, ["a", ""], {"a": lora(0)})
    assert pool.loaded == ("a",)


def test_gathered_factors_bounded() -> None:
    pool = AdapterPool(make_model())
    adapters = {f"a{i}": lora(i) for i in range(8)}
    for name, adapter in adapters.items():
        pool.add(name, adapter)
    rng = random.Random(1)
    for _ in range(12):
        assert_rows(pool, rng.sample(list(adapters), 3), adapters)
    assert all(len(layer._gathered) <= MAX_GATHERED for layer in pool.layers.values())


def test_added_in_inference_mode() -> None:
    """An engine reads adapters inside torch.inference_mode; they can be replaced outside of it."""
    pool = AdapterPool(make_model())
    pool.register("a", lambda: lora(0))
    with torch.inference_mode():
        logits(pool, ["a", ""])
    pool.add("a", lora(1))
    for i in range(5):
        pool.add(f"more{i}", lora(5 + i, rank=6))
    assert_rows(pool, ["a", "more3"], {"a": lora(1), "more3": lora(8, rank=6)})


def test_method_attached_between() -> None:
    """While unmounted, the model is a plain one: a DoRA is attached, taken off, and joins the pool."""
    pool = AdapterPool(make_model())
    pool.add("a", lora(0))
    plain = set(make_model().state_dict())
    with pool.unmounted():
        assert set(pool.model.state_dict()) == plain
    assert any(isinstance(x, MultiAdapterLinear) for x in pool.model.modules())
    model = attached("dora", rank=3)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(torch.randn_like(weight) * 0.1)
    ids = ids_of(1)
    with torch.no_grad():
        wanted = model.model(input_ids=ids, use_cache=False).logits[0]
    layers = detach(model.model, model.attachment, find(Method, "dora"), "d")
    pool.add("d", LowRankAdapter.of_layers(layers))
    assert gap(logits(pool, ["d", "a", ""])[0], wanted) <= 1e-5
    pool.remove("d")
    assert torch.equal(logits(pool, ["a"]), logits(pool, ["a"]))


def test_disabled_is_base() -> None:
    pool = AdapterPool(make_model())
    pool.add("a", lora(0))
    attachment = pool.attachment()
    with attachment.base():
        pool.add("b", lora(1, layers=("o_proj",)))  # a layer that joins meanwhile is off too
        assert torch.equal(logits(pool, ["a", "b"]), logits(pool, ["", ""]))
    assert_rows(pool, ["a", "b"], {"a": lora(0), "b": lora(1, layers=("o_proj",))})


def test_threads_wait() -> None:
    """Adapters come and go in one thread while another generates: every batch is right."""
    pool = AdapterPool(make_model(), max_loras=3)
    pool.add("a", lora(0))
    wanted, stop, errors = logits(pool, ["a", ""]), threading.Event(), []

    def churn() -> None:
        i = 0
        while not stop.is_set():
            try:
                pool.add(f"x{i % 5}", lora(100 + i % 5, rank=1 + i % 7), read=lambda i=i: lora(100 + i % 5))
                pool.remove(f"x{(i + 2) % 5}")
            except BaseException as error:
                errors.append(error)
                return
            i += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(40):
            assert gap(logits(pool, ["a", ""]), wanted) <= 1e-6
    finally:
        stop.set()
        thread.join()
    assert not errors


@pytest.mark.parametrize("has_bf16", [True, False])
@torch.no_grad()
def test_bf16_base(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    """Beside bf16 weights, factors are bf16, or fp32 where the CPU emulates bf16: both near the fp32 result."""
    monkeypatch.setattr(adapter_stack, "cpu_bf16", lambda: "AMX" if has_bf16 else "")
    pool, exact = AdapterPool(make_model().to(torch.bfloat16)), AdapterPool(make_model())
    for each in (pool, exact):
        for i in range(3):
            each.add(f"a{i}", lora(i))
    assert next(iter(pool.layers.values())).a.dtype == (torch.bfloat16 if has_bf16 else torch.float32)
    names = ["a1", "", "a0", "a2", "a1"]
    got, wanted = logits(pool, names), logits(exact, names)
    assert got.dtype == torch.bfloat16
    for row in range(5):
        assert gap(got[row].float(), wanted[row]) < 3e-2
