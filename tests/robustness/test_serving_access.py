"""Who may ask: every route with every kind of key, foreign Hosts and Origins, other sites' forms, names that are paths."""

import base64
import math
import random
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.models import save_model
from support.serving import KEY, LocalServer, serving
from weitiao.deploy.serve.access import Access
from weitiao.pipeline.serving import open_served, read_targets

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}], "max_tokens": 1}
WITHOUT_KEY = ("/health",)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    return open_served(read_targets([f"tiny={save_model(tmp_path_factory.mktemp('served') / 'llama')}"]))


@pytest.fixture(scope="module")
def server(served) -> Iterator[LocalServer]:
    with serving(served, KEY) as server:
        yield server


def routes_of(server: LocalServer) -> list[tuple[str, str]]:
    """(method, path) of all routes that the app has, however they were added."""
    found: list[tuple[str, str]] = []

    def walk(routes: list) -> None:
        for route in routes:
            inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
            if inner:
                walk(inner)
            for method in getattr(route, "methods", None) or ():
                found.append((method, route.path.replace("{name}", "tiny")))

    walk(server.app.routes)
    return sorted(set(found))


def test_every_route_needs_the_key(server: LocalServer) -> None:
    routes = routes_of(server)
    paths = {path for _, path in routes}
    assert {"/", "/chat.js", "/metrics", "/openapi.json", "/v1/chat/completions", "/v1/adapters/load", "/health"} <= paths
    expired = base64.b64encode(f"user:{KEY[:-1]}".encode()).decode()
    wrong: list[dict[str, str | None]] = [
        {"Authorization": None},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": KEY},
        {"Authorization": f"Token {KEY}"},
        {"Authorization": f"Basic {expired}"},
        {"Authorization": "Basic %%%"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"Authorization": "Bearer sch\xfcssel-mit-umlaut-\xff"},
        {"Authorization": None, "X-Api-Key": KEY},
        {"Authorization": f"Bearer wrong\r\nAuthorization: Bearer {KEY}"},
    ]
    forms = ("{}", "/{}", "{}/", "{}?key=" + KEY, "/v1/..{}", "/%2f{}", "/./{}", "{}%20")
    for method, path in routes:
        for form in forms:
            for headers in wrong if form == "{}" else wrong[:1]:
                target = form.format(path)
                status = server.request(method, target, {} if method == "POST" else None, headers)[0]
                open_path = target.partition("?")[0] in WITHOUT_KEY
                assert (status < 300 or status == 405) if open_path else status == 401, (method, target, headers, status)
        assert server.request(method, path, {} if method == "POST" else None)[0] != 401, (method, path)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "FOO"])
def test_other_methods_need_it_too(server: LocalServer, method: str) -> None:
    for path in ("/", "/v1/models", "/v1/chat/completions", "/metrics", "/nothing"):
        assert server.request(method, path, headers={"Authorization": None})[0] in (400, 401)


def test_no_websocket(server: LocalServer) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "x" * 24,
        "Sec-WebSocket-Version": "13",
    }
    assert server.request("GET", "/v1/models", headers={**upgrade, "Authorization": None})[0] in (400, 401, 403)


def test_basic_password_is_the_key_for_browsers(server: LocalServer) -> None:
    password = base64.b64encode(f"anybody:{KEY}".encode()).decode()
    assert server.request("GET", "/", headers={"Authorization": f"Basic {password}"})[0] == 200
    status, headers, _ = server.request("GET", "/", headers={"Authorization": None, "Accept": "text/html,*/*"})
    assert status == 401 and headers["www-authenticate"].startswith("Basic")
    assert server.request("GET", "/v1/models", headers={"Authorization": None})[1]["www-authenticate"] == "Bearer"


def foreign_hosts() -> list[str]:
    names = """evil.test localhost.evil.test 127.0.0.1.nip.io 2130706433 0x7f000001 0177.0.0.1 127.1 0 0.0.0.0
        [::] [::2] ::1 localhost. 127.0.0.2 localhost@evil.test evil.test#localhost localhost%00.evil.test
        xn--lcalhost-54a localhost/ * [::ffff:127.0.0.1] LOCALHOST.evil.test 127.0.0.1:80:80
        127.0.0.1:abc 127.0.0.1:999999 localhost;evil.test"""
    rng = random.Random(0)
    made = ("".join(rng.choices("abz019.-:[]%@/\\*_", k=rng.randint(1, 24))) for _ in range(200))
    return [*names.split(), "", "localhost evil.test", "localhost,evil.test", *(x for x in made if x.split(":")[0])]


def test_foreign_hosts_are_refused(server: LocalServer) -> None:
    for host in foreign_hosts():
        for path in ("/health", "/v1/models"):
            status = server.request("GET", path, headers={"Host": host})[0]
            assert status in (400, 403), (host, path, status)
    assert server.request("GET", "/v1/models", headers={"Host": None})[0] in (400, 403)
    assert server.request("GET", "/v1/models", headers={"Host": "localhost\r\nHost: evil.test"})[0] in (400, 403)
    for host in ("localhost", "LocalHost", f"127.0.0.1:{server.port}", "[::1]", "[::1]:8000"):
        assert server.request("GET", "/health", headers={"Host": host})[0] == 200, host


def test_pages_of_other_sites_change_nothing(served) -> None:
    with serving(served) as server:  # without a key, where only these checks protect
        before = len(routes_of(server))
        own = f"http://127.0.0.1:{server.port}"
        origins = [
            "null",
            "http://evil.test",
            "https://evil.test",
            f"http://localhost:{server.port + 1}",
            f"{own}.evil.test",
        ]
        origins += [
            f"https://evil.test:{server.port}",
            "file://",
            "",
            "http://127.0.0.1",
            f"{own}/",
            "chrome-extension://x",
        ]
        for origin in origins:
            for path, body in (("/v1/chat/completions", CHAT), ("/v1/adapters/load", {"lora_name": "x"})):
                assert server.request("POST", path, body, {"Origin": origin})[0] == 403, origin
            assert server.request("GET", "/v1/models", headers={"Origin": origin})[0] == 403
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", None):
            assert server.request("POST", "/v1/chat/completions", CHAT, {"Content-Type": kind})[0] == 415, kind
        twice = "text/plain\r\nContent-Type: application/json"
        assert server.request("POST", "/v1/chat/completions", CHAT, {"Content-Type": twice})[0] == 415
        form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--x--\r\n'
        foreign = {"Content-Type": "multipart/form-data; boundary=x", "Origin": "http://evil.test"}
        assert server.request("POST", "/v1/audio/transcriptions", form, foreign)[0] == 403
        assert (
            server.request("GET", "/v1/models", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})[0]
            == 403
        )
        assert server.request("POST", "/v1/chat/completions", CHAT, {"Origin": own})[0] == 200
        for method in ("OPTIONS", "GET"):
            headers = {"Origin": "http://evil.test", "Access-Control-Request-Method": "POST"}
            answered = server.request(method, "/v1/chat/completions", headers=headers)[1]
            assert not [x for x in answered if x.startswith("access-control")]
        assert len(routes_of(server)) == before and server.service.thread.num_open == 0


def test_the_page_may_load_nothing_from_elsewhere(server: LocalServer) -> None:
    for path in ("/", "/chat.js", "/chat.css", "/v1/models", "/nothing"):
        _, headers, body = server.request("GET", path)
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
        if path in ("/", "/chat.js", "/chat.css"):
            assert b"http://" not in body.replace(b"http://www.w3.org", b"") and b"https://" not in body
    page = server.request("GET", "/")[2].lower()
    assert b"<style" not in page and b" style=" not in page and b" onclick" not in page and b"<script>" not in page


def names_that_are_paths() -> list[str]:
    """At least 1,000 names that would lead out of a folder if they were joined to it."""
    goals = [
        "etc/passwd",
        "etc/shadow",
        "proc/self/environ",
        "windows/win.ini",
        "adapter_config.json",
        "secret",
        "recipe.yaml",
    ]
    ups = ["../", "..\\", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "....//", "..;/", "..%c0%af", "%c0%ae%c0%ae/", "..%252f",  # noqa: E501
           "\uff0e\uff0e/", "..\u2215", "..%u2215", ".%00./", "..\x00/", "./../", "//../", "..//", "\\..\\"]  # fmt: skip
    starts = ["/", "\\", "C:\\", "C:/", "file:///", "file://localhost/", "\\\\evil\\share\\", "//evil/", "~/", "~root/", "$HOME/",  # noqa: E501
              "%SystemRoot%\\", "http://evil.test/", "pickle:", "package:", "/dev/stdin#", "NAME=/", "@"]  # fmt: skip
    names = [up * depth + goal for up in ups for depth in (1, 2, 3, 5, 8, 12) for goal in goals]
    names += [start + goal for start in starts for goal in goals]
    names += ["tiny/" + x for x in names[:60]] + [x + "/tiny" for x in names[:60]] + [x + "\x00tiny" for x in names[:30]]
    names += [
        "CON",
        "NUL",
        "COM1",
        "aux.txt",
        ".",
        "..",
        "...",
        "",
        " ",
        "tiny ",
        " tiny",
        "tiny\n",
        "tiny\x00",
        "TINY",
        "tiny.",
    ]
    return [
        *names,
        "a" * 65,
        "a" * 100_000,
        "../" * 10_000,
        "\u202etiny",
        "ti\u200bny",
        "{{7*7}}",
        "${jndi:x}",
        "'; drop table",
    ]


def test_names_never_become_paths(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, served, monkeypatch) -> None:
    """No name leads to an open file; what the server opens is watched by an audit hook."""
    import sys

    watched = {"on": False}
    touched: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if watched["on"] and event in (
            "open",
            "os.listdir",
            "os.scandir",
            "os.remove",
            "os.rename",
            "os.mkdir",
            "subprocess.Popen",
        ):
            touched.append(f"{event} {arguments[0]!r}")

    sys.addaudithook(hook)
    names = names_that_are_paths()
    assert len(names) >= 1000
    with serving(served) as server:
        watched["on"] = True
        try:
            for name in names:
                for path, body in (
                    ("/v1/chat/completions", {**CHAT, "model": name}),
                    ("/v1/adapters/load", {"lora_name": name}),
                    ("/v1/unload_lora_adapter", {"lora_name": name}),
                ):
                    status, answer = server.post(path, body)
                    assert status in (400, 404, 409), (name, path, status)
                    assert name[:40] not in answer["error"]["message"] or len(name) < 4
            for name in names[:400]:
                target = "/v1/models/" + "".join(
                    x if x.isalnum() or x in "./\\%;~:=@$" else "%%%02x" % (ord(x) & 255) for x in name
                )
                assert server.request("GET", target)[0] in (400, 404)
                assert server.request("GET", target.replace("/v1/models/", "/"))[0] in (400, 404)
            status, answer = server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/etc"})
            assert status == 400
        finally:
            watched["on"] = False
    assert not touched, touched[:5]


def test_key_timing(served, full: bool, record_figure) -> None:
    """A key that is right in its first characters takes no longer to refuse."""
    access, near, far = Access({"key": KEY}), f"Bearer {KEY[:-1]}x", "Bearer " + "x" * len(KEY)
    n = 10_000 if full else 2_000
    times: dict[str, list[float]] = {near: [], far: []}
    for i in range(n):
        for key in (near, far) if i % 2 else (far, near):
            started = time.perf_counter_ns()
            assert access.key_name(key) is None
            times[key].append(time.perf_counter_ns() - started)
    cut = [sorted(x)[: int(0.9 * n)] for x in times.values()]  # without what the scheduler added
    a, b = cut
    t = abs(statistics.mean(a) - statistics.mean(b)) / math.sqrt(
        statistics.variance(a) / len(a) + statistics.variance(b) / len(b)
    )
    record_figure("serving: t of the key's timing", "< 4.5", round(t, 2), n)
    assert abs(statistics.median(a) - statistics.median(b)) < 0.05 * statistics.median(b) or t < 4.5


def test_another_address_needs_a_key() -> None:
    from weitiao.core.errors import ModelError
    from weitiao.pipeline.server import ServeOptions, read_access

    for host in ("0.0.0.0", "::", "192.168.1.5", "10.0.0.1"):
        with pytest.raises(ModelError, match="key"):
            read_access(ServeOptions(["x"], host=host))
    with pytest.raises(ModelError, match="IP address"):
        read_access(ServeOptions(["x"], host="example.test"))
    assert read_access(ServeOptions(["x"])).keys == {}
    assert len(read_access(ServeOptions(["x"], host="0.0.0.0", random_key=True)).keys["random"]) >= 43


def test_keys_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weitiao.core.errors import ModelError
    from weitiao.pipeline.server import KEY as VARIABLE
    from weitiao.pipeline.server import ServeOptions, read_access

    for text in ("", "\n", "short", "with space in the middle of it", "ümlaut-ümlaut-ümlaut"):
        (tmp_path / "key").write_text(text, encoding="utf-8")
        with pytest.raises(ModelError):
            read_access(ServeOptions(["x"], host="0.0.0.0", api_key_files=[str(tmp_path / "key")]))
    with pytest.raises(ModelError):
        read_access(ServeOptions(["x"], api_key_files=[str(tmp_path / "none")]))
    monkeypatch.setenv(VARIABLE, KEY)
    assert read_access(ServeOptions(["x"], host="0.0.0.0")).keys == {"key": KEY}


def test_host_of_the_address_it_came_to(served) -> None:
    """A probe of Kubernetes names the pod's own address; no DNS name can be rebound to that."""
    with serving(served, KEY, Access({"key": KEY}, hosts=("api.example.test",))) as server:
        assert server.request("GET", "/health")[0] == 200
        assert server.request("GET", "/health", headers={"Host": "api.example.test"})[0] == 200
        assert server.request("GET", "/health", headers={"Host": "localhost"})[0] == 403
        assert socket.gethostbyname("localhost") == "127.0.0.1"
