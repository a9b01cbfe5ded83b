"""Many adapters on one base: by name, from one folder, at most so many in memory; never anything beside the folder."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from support.runs import finished_run
from support.serving import LocalServer, serving
from weitiao.core.errors import ModelError
from weitiao.deploy.serve.limits import NAME
from weitiao.pipeline.serving import list_adapters, open_served, read_targets


def ask(server: LocalServer, model: str) -> tuple[int, dict]:
    body = {"model": model, "prompt": "the quick", "max_tokens": 3, "logprobs": 0, "ignore_eos": True}
    return server.post("/v1/completions", body)


def logprobs(server: LocalServer, model: str) -> list[float]:
    status, answer = ask(server, model)
    assert status == 200, answer
    return answer["choices"][0]["logprobs"]["token_logprobs"]


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters of different strengths, and of things that must not be opened."""
    place = tmp_path_factory.mktemp("users")
    adapter = Path(finished_run()) / "adapter"
    for i in range(5):
        shutil.copytree(adapter, place / f"user-{i}")
        weights = load_file(place / f"user-{i}" / "adapter_model.safetensors")
        save_file({k: x * (0.3 * i + 0.1) for k, x in weights.items()}, place / f"user-{i}" / "adapter_model.safetensors")
    shutil.copytree(adapter, place / "zero")
    save_file({k: x * 0 for k, x in weights.items()}, place / "zero" / "adapter_model.safetensors")
    shutil.copytree(adapter, place / "pickled")
    (place / "pickled" / "adapter_model.safetensors").unlink()
    (place / "pickled" / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    shutil.copytree(adapter, place / "-leading-dash")
    (place / "a-file").write_text("x")
    outside = tmp_path_factory.mktemp("outside") / "secret"
    shutil.copytree(adapter, outside)
    (place / "link-out").symlink_to(outside)
    (place / "link-in").symlink_to(place / "user-0")
    return place


@pytest.fixture
def server(users: Path) -> Iterator[LocalServer]:
    served = open_served(read_targets([f"tiny={finished_run()}"]), adapters_dir=str(users))
    with serving(served, max_cpu_loras=2) as server:
        yield server


def test_listed(server: LocalServer, users: Path) -> None:
    listed = [x["id"] for x in server.get("/v1/models")["data"]]
    assert listed[:2] == ["tiny", "llama"] and {f"user-{i}" for i in range(5)} <= set(listed)
    assert not {"-leading-dash", "a-file", "link-out", "pickled"} & set(listed) and "link-in" in listed
    assert set(list_adapters(users)) == set(listed) - {"tiny", "llama"}


def test_each_answers_as_itself(server: LocalServer) -> None:
    answers = {x: logprobs(server, x) for x in ("tiny", "llama", "user-0", "user-1", "user-2", "user-3", "user-4")}
    assert len({tuple(x) for x in answers.values()}) >= 6
    assert len(server.service.table.loaded()) == 1 + 2
    for name, expected in answers.items():  # those that were dropped are read again
        assert logprobs(server, name) == pytest.approx(expected, abs=1e-4)


def test_mixed_and_at_once(server: LocalServer) -> None:
    names = ["tiny", "llama", "user-0", "user-1"] * 6
    alone = {x: logprobs(server, x) for x in set(names)}
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda x: logprobs(server, x), names))
    for name, answer in zip(names, together):
        assert answer == pytest.approx(alone[name], abs=1e-4)


def test_more_than_fit_are_told_to_wait(server: LocalServer) -> None:
    with ThreadPoolExecutor(10) as pool:
        statuses = [x[0] for x in pool.map(lambda i: ask(server, f"user-{i % 5}"), range(40))]
    assert set(statuses) <= {200, 429} and statuses.count(200) >= 5
    assert len(server.service.table.loaded()) <= 3 and not +server.service.table._in_use


def test_load_and_unload(server: LocalServer) -> None:
    assert server.post("/v1/adapters/load", {"lora_name": "user-3"})[1]["loaded"] == ["tiny", "user-3"]
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "user-3"})[1]["loaded"] == ["tiny"]
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "user-3"})[0] == 404
    assert server.post("/v1/adapters/unload", {"lora_name": "tiny"})[0] == 409
    assert server.post("/v1/adapters/unload", {"lora_name": "llama"})[0] == 409
    assert server.post("/v1/load_lora_adapter", {"lora_name": "link-out"})[0] == 404
    assert server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc"})[0] == 400


def test_one_that_changes_nothing_is_refused(server: LocalServer) -> None:
    status, answer = ask(server, "zero")
    assert status == 400 and "changes nothing" in answer["error"]["message"] and "/" not in answer["error"]["message"]
    assert server.service.table.loaded() == ["tiny"]


def test_a_new_folder_is_seen(server: LocalServer, users: Path) -> None:
    assert ask(server, "later")[0] == 404
    shutil.copytree(users / "user-2", users / "later")
    try:
        server.service.table._looked = float("-inf")
        assert logprobs(server, "later") == pytest.approx(logprobs(server, "user-2"), abs=1e-4)
    finally:
        shutil.rmtree(users / "later")


def test_names_of_targets() -> None:
    run = finished_run()
    assert [x.name for x in read_targets([run, f"b={run}"])] == ["run", "b"]
    for texts in ([run, run], [f"-x={run}"], [f"a b={run}"], [f"{'x' * 65}={run}"]):
        with pytest.raises(ModelError):
            read_targets(texts)
    assert NAME.fullmatch("a.B-_9") and not any(NAME.fullmatch(x) for x in ("", ".x", "-x", "a/b", "a\n", "a b", "é"))


def test_a_target_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    shutil.copytree(Path(finished_run()) / "adapter", tmp_path / "zero")
    file = tmp_path / "zero" / "adapter_model.safetensors"
    save_file({k: x * 0 for k, x in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="changes nothing"):
        open_served(read_targets([str(tmp_path / "zero")]))
