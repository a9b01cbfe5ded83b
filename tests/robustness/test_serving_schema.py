"""Requests made from our own OpenAPI by schemathesis: whatever it thinks of, no 5xx, and errors in our form."""

import json
from collections.abc import Iterator

import pytest

from support.models import save_model
from support.runs import finished_run
from support.serving import KEY, LocalServer, serving
from weitiao.pipeline.serving import open_served, read_targets

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis has no wheel for Python 3.10")
SHORT, FULL = 12, 300  # examples of each operation


@pytest.fixture(scope="module", params=["generates", "classifies"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    if request.param == "generates":
        target = save_model(tmp_path_factory.mktemp("served") / "llama")
    else:
        target = finished_run("bert")
    served = open_served(read_targets([f"tiny={target}"]))
    with serving(served, KEY, request_timeout=20, default_new_tokens=4, max_new_tokens=8) as server:
        yield server


def test_schemathesis(server: LocalServer, full: bool, record_figure) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    document = json.loads(server.request("GET", "/openapi.json")[2])
    schema = schemathesis.openapi.from_dict(document)
    schema.config.base_url = server.url
    operations = [x.ok() for x in schema.get_all_operations()]
    assert len(operations) >= 18
    statuses: dict[int, int] = {}
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            strategy = operation.as_strategy(generation_mode=mode)
            cases = st.tuples(strategy, st.booleans())

            @settings(
                max_examples=FULL if full else SHORT, deadline=None, database=None, derandomize=not full,
                phases=[Phase.generate], suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(drawn=cases)
            def run(drawn) -> None:
                case, is_named = drawn
                if isinstance(case.body, dict) and "model" in case.body and is_named:
                    case.body["model"] = "tiny"
                response = case.call(headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                assert response.status_code < 500 or response.status_code == 503, (case.path, case.body, response.text)
                assert "Traceback" not in response.text and "site-packages" not in response.text
                if response.status_code >= 400 and response.headers["content-type"] == "application/json":
                    assert "error" in response.json() or "status" in response.json() or "ready" in response.json()

            try:
                run()
            except BaseException as error:
                if "Unsatisfiable" not in type(error).__name__:  # nothing of this operation can be wrong
                    raise
    record_figure("serving: schemathesis' requests without a 5xx", "0 of all", statuses, sum(statuses.values()))
    assert sum(statuses.values()) > 100
