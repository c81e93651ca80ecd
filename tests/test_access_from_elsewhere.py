"""The access table of docs/api.md from other machines: a daemon bound to all addresses, callers on a real network."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pawand.web.app import PREFIXES, ROUTES
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.netns import Host, Lan

pytestmark = pytest.mark.slow

README_HEALTH = {"status", "version", "uptime_secs", "agent_id"}
README_PEER = {"name", "agent_id", "ip", "groups"}
PAGE = "https://app.example"
EVIL = "https://evil.example"
WRONG = "wrong-token-0123456789"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)

    @property
    def refusal(self) -> tuple[int, str]:
        return self.status, self.body["code"]


@dataclass
class Place:
    """A daemon on `home`, and what it says to somebody on another host."""

    daemon: harness.Process
    home: Host
    model: OpenAIServer

    @property
    def port(self) -> int:
        return int(self.daemon.url.rpartition(":")[2])

    @property
    def token(self) -> str:
        return (self.daemon.state / "token").read_text().strip()

    def bearer(self, token: str = "") -> str:
        return f"Authorization: Bearer {token or self.token}"

    def knock(
        self, caller: Host, target: str, *lines: str, address: str = "", host: str = "", body: str = "", ip: str = ""
    ) -> Answer:
        """A request in its very bytes. `target` is method and path, `lines` are headers; `address` is where to
        connect to, `host` the Host header, `ip` the caller's own address where it has several."""
        address = address or self.home.ip
        named = f"[{address}]" if ":" in address else address
        head = [f"{target} HTTP/1.1", f"Host: {host or f'{named}:{self.port}'}", "Connection: close", *lines]
        if body:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        with caller.inside():
            connection = socket.create_connection((address, self.port), 20, (ip, 0) if ip else None)
        with connection:
            connection.sendall(("\r\n".join([*head, "", ""]) + body).encode("latin-1"))
            received = b""
            while data := connection.recv(65536):
                received += data
        top, _, text = received.decode().partition("\r\n\r\n")
        first, *rest = top.split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}
        return Answer(int(first.split()[1]), headers, text)


@contextmanager
def place(home: Host, folder: Path, settings: str = "", hosts: str = '"0.0.0.0", "::"') -> Iterator[Place]:
    with ExitStack() as stack:
        with home.inside():
            model = stack.enter_context(OpenAIServer(lambda _: fake.text("hello")))
            aegis = folder / "aegis/net.toml"
            aegis.parent.mkdir()
            aegis.write_text('[peers.bee]\nip = "10.77.0.9"\ngroups = ["x"]\n')
            env = {"OPENAI_API_URL": model.url, "OPENAI_API_KEY": harness.API_KEY, "PAWAN_MODEL": harness.MODEL,
                   "PAWAN_PROVIDER": "openai", "HOME": str(folder)}  # fmt: skip
            text = f'[discovery]\naegis_file = "{aegis}"\n[server]\nhost = [{hosts}]\n{settings}'
            daemon = stack.enter_context(harness.serve(folder / "w", folder / "s", env=env, config=text))
        yield Place(daemon, home, model)


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan(3) as made:
        yield made


@pytest.fixture(scope="module")
def there(lan: Lan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    settings = f'allowed_hosts = ["pawan.example"]\ncors_origins = ["{PAGE}"]\n'
    with place(lan.hosts[0], tmp_path_factory.mktemp("there"), settings) as made:
        yield made


@pytest.fixture(params=["IPv4", "IPv6"])
def address(lan: Lan, request: pytest.FixtureRequest) -> str:
    """Of the daemon, as others see it."""
    return lan.hosts[0].ip if request.param == "IPv4" else lan.hosts[0].ip6


def requests() -> list[str]:
    """Method and path of everything that the daemon does, discovery aside."""
    found = [f"{verb} {path}" for path, handler in ROUTES for verb in handler.verbs]
    found = [line.replace("([^/]*)", "some-id") for line in found]
    return [line for line in found if line not in ("GET /health", "GET /agents")]


# --- with and without a token ---------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_without_a_token_others_see_who_is_there(
    there: Place, lan: Lan, address: str, prefix: str, method: str
) -> None:
    health = there.knock(lan.hosts[1], f"{method} {prefix}/health", address=address)
    agents = there.knock(lan.hosts[1], f"{method} {prefix}/agents", address=address)
    assert (health.status, agents.status) == (200, 200)
    assert "access-control-allow-origin" not in health.headers
    if method == "GET":
        assert health.body.keys() == README_HEALTH
        assert agents.body.keys() == {"self", "peers"}
        assert [peer.keys() for peer in agents.body["peers"]] == [README_PEER]


def test_without_a_token_others_do_nothing_else(there: Place, lan: Lan, address: str) -> None:
    for line in [*requests(), "GET /nothing", "POST /health", "DELETE /agents", "BREW /chat"]:
        for prefix in PREFIXES:
            answer = there.knock(lan.hosts[1], line.replace(" /", f" {prefix}/"), address=address)
            assert answer.refusal == (401, "unauthorized"), line
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "send `Authorization: Bearer <token>`" in answer.body["error"]
            assert "<state>/token" in answer.body["error"]
    body = '{"message": "x", "session_id": "stranger"}'
    assert there.knock(lan.hosts[1], "POST /chat", address=address, body=body).status == 401
    assert there.model.requests == []
    assert not list((there.daemon.state / "sessions").glob("*.json"))


@pytest.mark.parametrize(
    "line",
    ["Authorization: Basic {}", "Authorization: {}", "Authorization: Bearer{}", "Cookie: token={}", "X-Token: {}"],
)
def test_the_token_counts_as_a_bearers_only(there: Place, lan: Lan, line: str) -> None:
    assert there.knock(lan.hosts[1], "GET /models", line.format(there.token)).status == 401
    assert there.knock(lan.hosts[1], f"GET /models?token={there.token}").status == 401


def test_with_the_token_others_do_everything(there: Place, lan: Lan, address: str) -> None:
    def call(target: str, body: str = "") -> Answer:
        return there.knock(lan.hosts[1], target, there.bearer(), address=address, body=body)

    assert call("GET /health").body.keys() > README_HEALTH
    assert call("GET /agents").body["peers"][0].keys() > README_PEER
    assert call("GET /models").status == 200
    session = "v6" if ":" in address else "v4"
    body = json.dumps({"message": "hi", "session_id": session})
    assert call("POST /chat", body).body["content"] == "hello"
    assert "event: done" in call("POST /chat/stream", body).text
    assert len(call(f"GET /sessions/{session}").body["messages"]) == 4
    assert call(f"POST /sessions/{session}/cancel").body == {"cancelled": False}
    assert call(f"DELETE /sessions/{session}").status == 204
    assert call("GET /nothing").refusal == (404, "not_found")
    assert there.knock(lan.hosts[1], "GET /models", f"authorization: bEaReR  {there.token} ").status == 200


def test_loopback_of_that_machine_needs_none(there: Place) -> None:
    assert there.knock(there.home, "GET /models", address="127.0.0.1").status == 200
    assert there.knock(there.home, "GET /models", address="::1").status == 200
    # By its own address on the network a machine is a caller like others.
    assert there.knock(there.home, "GET /models").status == 401


def test_ten_wrong_tokens_close_an_address_and_no_other(lan: Lan, tmp_path: Path) -> None:
    home, one, other = lan.hosts
    with place(home, tmp_path) as made:
        for number in range(10):
            target = "GET /health" if number % 2 else "POST /chat"
            answer = made.knock(one, target, made.bearer(WRONG))
            assert answer.refusal == (401, "unauthorized")
            assert "wrong token" in answer.body["error"]
        for line in (made.bearer(WRONG), made.bearer()):
            answer = made.knock(one, "GET /models", line)
            assert answer.refusal == (429, "too_many_failures")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert made.knock(one, "GET /health").status == 200
        # No header makes it another address, or another one this address.
        assert made.knock(one, "GET /models", made.bearer(), "X-Forwarded-For: 10.77.0.3").status == 429
        assert made.knock(other, "GET /models", made.bearer(), f"X-Forwarded-For: {one.ip}").status == 200
        assert made.knock(other, "GET /models", made.bearer()).status == 200
        assert made.knock(home, "GET /models", address="127.0.0.1").status == 200
        assert made.knock(home, "GET /models", made.bearer(), address="127.0.0.1").status == 200
        assert made.knock(one, "GET /models", made.bearer(), address=home.ip6).status == 200
        assert WRONG not in made.daemon.log_text()
        assert made.token not in made.daemon.log_text()


def test_a_network_of_ipv6_is_one_caller(lan: Lan, tmp_path: Path) -> None:
    home, one, other = lan.hosts
    for number in range(20, 31):
        with one.inside():
            one.run("ip", "address", "add", f"fd77::{number}/64", "dev", "eth0", "nodad")
    with place(home, tmp_path) as made:
        for number in range(20, 30):
            answer = made.knock(one, "GET /health", made.bearer(WRONG), address=home.ip6, ip=f"fd77::{number}")
            assert answer.status == 401
        assert made.knock(one, "GET /models", made.bearer(), address=home.ip6, ip="fd77::30").status == 429
        assert made.knock(other, "GET /models", made.bearer(), address=home.ip6).status == 429  # of the same /64
        assert made.knock(one, "GET /models", made.bearer()).status == 200


def test_local_auth_asks_loopback_too(lan: Lan, tmp_path: Path) -> None:
    with place(lan.hosts[0], tmp_path, 'local_auth = "token"\n') as made:
        assert made.knock(made.home, "GET /models", address="127.0.0.1").status == 401
        assert made.knock(made.home, "GET /health", address="127.0.0.1").body.keys() == README_HEALTH
        assert made.knock(made.home, "GET /models", made.bearer(), address="127.0.0.1").status == 200
        assert made.knock(lan.hosts[1], "GET /models").status == 401


# --- forwarding headers ---------------------------------------------------------------------------

FORWARDING = [
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-For: ::1",
    "X-Forwarded-For: 127.0.0.1, 10.0.0.1",
    "x-forwarded-for:127.0.0.1",
    "X-FORWARDED-FOR: localhost",
    "X-Forwarded-For:",
    "X-Forwarded-Host: localhost",
    "X-Forwarded-Proto: http",
    "X-Forwarded-Anything: x",
    "Forwarded: for=127.0.0.1",
    'Forwarded: for="[::1]";host=localhost;proto=http',
    "X-Real-IP: 127.0.0.1",
    "x-real-ip: 127.0.0.1",
    "Via: 1.1 localhost",
    "X_Forwarded_For: 127.0.0.1",
    "X_REAL_IP: 127.0.0.1",
    "X-Forwarded_For: 127.0.0.1",
    "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1",
    "X-Real-IP: 127.0.0.1\r\nForwarded: for=127.0.0.1",
    "X-Forwarded-For: 127.0.0.1\r\nVia: 1.1 a\r\nX-Real-IP: ::1",
]
OTHERS = [
    "X-Client-IP: 127.0.0.1",
    "True-Client-IP: 127.0.0.1",
    "CF-Connecting-IP: 127.0.0.1",
    "X-Cluster-Client-IP: 127.0.0.1",
    "X-Original-Forwarded-For: 127.0.0.1",
    "Client-IP: 127.0.0.1",
    "X-Remote-Addr: 127.0.0.1",
    "X-Host: localhost",
    "X-Original-URL: /health",
    "X-Rewrite-URL: /health",
    "X-HTTP-Method-Override: GET",
    "Origin: http://localhost:3000",
]


@pytest.mark.parametrize("lines", [*FORWARDING, *OTHERS])
def test_no_header_makes_a_stranger_local(there: Place, lan: Lan, lines: str) -> None:
    for address in (lan.hosts[0].ip, lan.hosts[0].ip6):
        answer = there.knock(lan.hosts[1], "GET /sessions", lines, address=address)
        assert answer.refusal == (401, "unauthorized")
        answer = there.knock(lan.hosts[1], "POST /chat", lines, address=address, body='{"message": "x"}')
        assert answer.refusal == (401, "unauthorized")
        assert there.knock(lan.hosts[1], "GET /health", lines, address=address).body.keys() == README_HEALTH


@pytest.mark.parametrize("lines", FORWARDING)
def test_a_forwarding_header_takes_the_rights_of_loopback(there: Place, lines: str) -> None:
    for address in ("127.0.0.1", "::1"):
        answer = there.knock(there.home, "GET /sessions", lines, address=address)
        assert answer.refusal == (401, "unauthorized")
        assert there.knock(there.home, "GET /health", lines, address=address).body.keys() == README_HEALTH
        assert there.knock(there.home, "GET /sessions", lines, there.bearer(), address=address).status == 200


@pytest.mark.parametrize(
    "lines", ["X-Forwarded-For : 127.0.0.1", "X-Forwarded-For\t: 127.0.0.1", "X-Forwarded-For:\r\n 127.0.0.1"]
)
def test_a_header_that_is_malformed_gives_no_rights(there: Place, lan: Lan, lines: str) -> None:
    assert there.knock(lan.hosts[1], "GET /sessions", lines).status in (400, 401)
    assert there.knock(there.home, "GET /sessions", lines, address="127.0.0.1").status in (400, 401)


# --- Host -----------------------------------------------------------------------------------------

NAME = socket.gethostname()


@pytest.mark.parametrize(
    "host",
    [NAME, NAME.upper(), f"{NAME}:1234", f"{NAME}.", f"{NAME.partition('.')[0]}.local", socket.getfqdn(), "localhost",
     "pawan.example", "PAWAN.example:443", "10.77.0.1", "10.77.0.1:80", "[fd77::1]:3300", "192.0.2.7", "[::1]",
     "127.0.0.1", "[::ffff:10.77.0.1]"],
)  # fmt: skip
def test_names_of_the_machine_and_addresses_are_fine(there: Place, lan: Lan, host: str) -> None:
    assert there.knock(lan.hosts[1], "GET /health", host=host).status == 200
    assert there.knock(lan.hosts[1], "GET /models", there.bearer(), host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"{NAME}.evil.example", f"x{NAME}", "pawan.example.evil", "xpawan.example", "0.0.0.0",
     "0.0.0.0:3300", "[::]", "[::]:3300", "[::ffff:0.0.0.0]", "127.1", "2130706433", "0x7f.1", "localhost.evil.example",
     "other.local"],
)  # fmt: skip
def test_other_names_are_misdirected_whoever_calls(there: Place, lan: Lan, host: str) -> None:
    for target in ("GET /health", "GET /models", "OPTIONS /chat", "GET /nothing"):
        for lines in ([], [there.bearer()]):
            answer = there.knock(lan.hosts[1], target, *lines, host=host)
            assert answer.refusal == (421, "host_not_allowed")
            assert "allowed_hosts" in answer.body["error"]
    assert there.knock(there.home, "GET /health", host=host, address="127.0.0.1").status == 421


@pytest.mark.parametrize(
    "host", ["localhost:x", "a b", "user@localhost", "[::1", "localhost/..", "localhost\r\nHost: localhost", ","]
)
def test_a_host_that_is_malformed_is_refused(there: Place, lan: Lan, host: str) -> None:
    answer = there.knock(lan.hosts[1], "GET /models", there.bearer(), host=host)
    assert answer.status in (400, 421)


def test_own_names_are_for_those_who_are_let_in_from_the_network(lan: Lan, tmp_path: Path) -> None:
    with place(lan.hosts[0], tmp_path, hosts='"127.0.0.1", "::1"') as made:
        assert made.knock(made.home, "GET /health", address="127.0.0.1", host=NAME).status == 421
        assert made.knock(made.home, "GET /health", address="127.0.0.1").status == 200
        with pytest.raises(OSError):
            made.knock(lan.hosts[1], "GET /health")


# --- Origin ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", [EVIL, "null", "http://10.77.0.1:1", f"{PAGE}:444", PAGE.replace("https", "http")])
def test_other_pages_are_refused_with_the_right_token_too(there: Place, lan: Lan, origin: str) -> None:
    for line in [*requests(), "GET /nothing"]:
        for more in ([], [there.bearer()]):
            answer = there.knock(lan.hosts[1], line, f"Origin: {origin}", *more)
            assert answer.refusal == (403, "origin_not_allowed")
            assert "access-control-allow-origin" not in answer.headers
    for target in ("GET /health", "GET /agents"):
        answer = there.knock(lan.hosts[1], target, f"Origin: {origin}", there.bearer())
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")
        assert answer.body.keys() in (README_HEALTH, {"self", "peers"})
        assert "port" not in answer.text


def test_allowed_pages_need_the_token_from_elsewhere(there: Place, lan: Lan) -> None:
    own = f"http://10.77.0.1:{there.port}"
    for origin in (PAGE, own, "http://localhost:5173", "http://127.0.0.1"):
        refused = there.knock(lan.hosts[1], "GET /models", f"Origin: {origin}")
        assert refused.refusal == (401, "unauthorized")
        assert refused.headers["access-control-allow-origin"] == origin
        answer = there.knock(lan.hosts[1], "GET /models", f"Origin: {origin}", there.bearer())
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
        assert "Origin" in answer.headers["vary"]
        known = there.knock(lan.hosts[1], "GET /health", f"Origin: {origin}")
        assert (known.body.keys(), known.headers["access-control-allow-origin"]) == (README_HEALTH, origin)


def test_preflights(there: Place, lan: Lan) -> None:
    asked = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization, pawan-hops"]
    for origin in (PAGE, "http://localhost:1"):
        answer = there.knock(lan.hosts[1], "OPTIONS /chat", f"Origin: {origin}", *asked)
        assert (answer.status, answer.text) == (204, "")
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["access-control-allow-methods"] == "GET, POST, DELETE"
        assert answer.headers["access-control-allow-headers"] == "authorization, pawan-hops"
        assert "Origin" in answer.headers["vary"]
    for origin in (EVIL, "null"):
        answer = there.knock(lan.hosts[1], "OPTIONS /chat", f"Origin: {origin}", *asked)
        assert answer.refusal == (403, "origin_not_allowed")
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_options_that_are_no_preflight_need_the_token(there: Place, lan: Lan) -> None:
    for target in ("OPTIONS /chat", "OPTIONS /health", "OPTIONS /nothing", "OPTIONS *"):
        for lines in ([], [f"Origin: {PAGE}"], ["Access-Control-Request-Method: POST"]):
            assert there.knock(lan.hosts[1], target, *lines).refusal == (401, "unauthorized")
    assert there.knock(lan.hosts[1], "OPTIONS /chat", there.bearer()).status == 204
    assert there.knock(lan.hosts[1], "OPTIONS /nothing", there.bearer()).refusal == (404, "not_found")


def test_two_origins_are_none(there: Place, lan: Lan) -> None:
    answer = there.knock(lan.hosts[1], "GET /models", f"Origin: {PAGE}\r\nOrigin: {EVIL}", there.bearer())
    assert answer.status in (400, 403)


def test_any_origin_with_the_token(lan: Lan, tmp_path: Path) -> None:
    with place(lan.hosts[0], tmp_path, 'cors_origins = ["*"]\n') as made:
        for caller, address in ((lan.hosts[1], lan.hosts[0].ip), (made.home, "127.0.0.1")):
            origin = f"Origin: {EVIL}"
            refused = made.knock(caller, "GET /models", origin, address=address)
            assert refused.refusal == (401, "unauthorized")
            assert refused.headers["access-control-allow-origin"] == EVIL
            answer = made.knock(caller, "GET /models", origin, made.bearer(), address=address)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, EVIL)
            asked = "Access-Control-Request-Method: POST"
            assert made.knock(caller, "OPTIONS /chat", origin, asked, address=address).status == 204
            assert made.knock(caller, "GET /health", origin, address=address).body.keys() == README_HEALTH


# --- the order of the checks ----------------------------------------------------------------------


def test_checks_come_in_order(lan: Lan, tmp_path: Path) -> None:
    big = "x" * (2 * 1024 * 1024)
    with place(lan.hosts[0], tmp_path) as made:
        for target, found in (("GET /nothing", 404), ("PUT /chat", 405), ("POST /chat", 413)):
            lines = [f"Origin: {EVIL}", made.bearer(WRONG)]
            body = big if found == 413 else ""
            assert made.knock(lan.hosts[1], target, *lines, host="evil.example", body=body).status == 421
            assert made.knock(lan.hosts[1], target, *lines, body=body).status == 403
            assert made.knock(lan.hosts[1], target, made.bearer(WRONG), body=body).status == 401
            assert made.knock(lan.hosts[1], target, body=body).status == 401
            assert made.knock(lan.hosts[1], target, made.bearer(), body=body).status == found
        assert made.knock(lan.hosts[1], "GET http://localhost/sessions").status in (400, 401)
        assert made.knock(lan.hosts[1], "GET //health").status == 401
        assert made.knock(lan.hosts[1], "GET /health/../sessions").status == 401
        assert made.knock(lan.hosts[1], "GET /%2e/health").status == 401
