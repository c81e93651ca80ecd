"""`ask_agent` between two running daemons: what is asked and seen, who is let in, how far a question goes."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer, Script
from tests.harness import Process, Stream, until
from tests.netns import Host, Lan

TOKEN = "token-of-the-other-daemon-0123456789"
OTHER = "a-wrong-one-that-is-long-enough-0123"


@dataclass
class Agent:
    """A daemon and the model that it talks to."""

    daemon: Process
    model: OpenAIServer

    @property
    def address(self) -> str:
        return self.daemon.url.removeprefix("http://")

    def asked(self) -> list[str]:
        """What its model was told by users, the last message of each request."""
        found = []
        for request in self.model.requests:
            found += [str(m["content"]) for m in request["messages"][-1:] if m["role"] == "user"]
        return found

    def told(self) -> Any:
        """The result of a tool that its model was sent last."""
        return json.loads(self.model.requests[-1]["messages"][-1]["content"])

    def chat(self, message: str = "go", **body: Any) -> list[harness.Event]:
        return Stream(self.daemon.url, "/chat/stream", {"message": message, **body}).read_rest()


@contextmanager
def agent(folder: Path, script: Script, settings: str = "", port: int = 0) -> Iterator[Agent]:
    with OpenAIServer(script) as model:
        env = {"OPENAI_API_URL": model.url, "OPENAI_API_KEY": harness.API_KEY, "PAWAN_MODEL": harness.MODEL,
               "PAWAN_PROVIDER": "openai"}  # fmt: skip
        with harness.serve(folder / "w", folder / "s", env=env, config=settings, port=port) as daemon:
            yield Agent(daemon, model)


@contextmanager
def guarded(folder: Path, script: Script, settings: str = "") -> Iterator[Agent]:
    """One that asks every caller for TOKEN."""
    file = folder / "s" / "token"
    file.parent.mkdir(parents=True)
    file.write_text(TOKEN)
    file.chmod(0o600)
    with agent(folder, script, f'{settings}\n[server]\nlocal_auth = "token"\n') as made:
        yield made


def knows(other: Agent, token: str = TOKEN, name: str = "bee") -> str:
    return f'[peers.{name}]\naddress = "{other.address}"\n' + (f'token = "{token}"\n' if token else "")


def ask(message: str, name: str = "bee") -> fake.Reply:
    return fake.calls(("ask_agent", {"name": name, "message": message}))


def test_the_answer_comes_back_and_is_seen_as_it_comes(tmp_path: Path) -> None:
    with guarded(tmp_path / "b", [fake.calls(("bash", {"command": "echo 42"})), fake.text("It is ", "42.")]) as bee:
        script = [ask(f"What is it? My key is {TOKEN}."), fake.text("bee says 42")]
        with agent(tmp_path / "a", script, knows(bee)) as ant:
            events = ant.chat()
            told = ant.told()
            sessions = ant.daemon.call("GET", "/sessions")[1]
            log = ant.daemon.log_text()
        authorised = {"Authorization": f"Bearer {TOKEN}"}
        [there] = bee.daemon.call("GET", "/sessions", headers=authorised)[1]
    assert told == {
        "success": True,
        "agent": "bee",
        "content": "It is 42.",
        "session_id": there["id"],
        "finish_reason": "stop",
    }
    names = [name for name, _ in events if name != "token"]
    assert names[:2] == ["start", "tool_start"]
    assert names[-2:] == ["tool_complete", "done"]
    live = "".join(data["content"] for name, data in events if name == "tool_output")
    assert live.endswith("It is 42.")
    assert '▸ bash {"command":"echo 42"}' in live
    assert bee.asked() == ["What is it? My key is [redacted]."]
    everything = [json.dumps([events, sessions]), log, *(f.read_text() for f in (tmp_path / "a/s/sessions").glob("*"))]
    assert not [text for text in everything if TOKEN in text]


@pytest.mark.parametrize(("token", "hint"), [("", " (none is set) must be"), (OTHER, " must be the token in")])
def test_without_the_right_token_it_is_refused_and_nothing_runs(tmp_path: Path, token: str, hint: str) -> None:
    with guarded(tmp_path / "b", []) as bee:
        with agent(tmp_path / "a", [ask("x"), fake.text("ok")], knows(bee, token)) as ant:
            events = ant.chat()
        assert bee.model.requests == []
    told = ant.told()
    assert told["tool"] == "ask_agent"
    assert "refused (status 401, unauthorized): `[peers.bee] token`" in told["error"]
    assert hint in told["error"]
    assert OTHER not in json.dumps(events)
    assert events[-1][0] == "done"


def test_cancelling_the_turn_ends_the_turn_of_the_peer(tmp_path: Path) -> None:
    slow = fake.Reply([fake.chunk({"role": "assistant", "content": "thinking…"}), 60.0])
    with guarded(tmp_path / "b", [slow]) as bee, agent(tmp_path / "a", [ask("x")], knows(bee)) as ant:
        stream = Stream(ant.daemon.url, "/chat/stream", {"message": "go", "session_id": "one"})
        stream.read_until("tool_output")
        began = time.monotonic()
        assert ant.daemon.call("POST", "/sessions/one/cancel") == (200, {"cancelled": True})
        until(bee.model.hung_up.is_set, "the peer's model is let go", 5)
        took = time.monotonic() - began
        assert stream.read_rest()[-1][1]["code"] == "cancelled"
        assert took < 1
        assert " code=cancelled " in until(lambda: bee.daemon.log_text().partition("turn failed")[2], "its turn ended")


def test_a_client_that_goes_away_takes_the_question_along_where_it_wants_that(tmp_path: Path) -> None:
    slow = fake.Reply([fake.chunk({"role": "assistant", "content": "thinking…"}), 60.0])
    with guarded(tmp_path / "b", [slow]) as bee, agent(tmp_path / "a", [ask("x")], knows(bee)) as ant:
        stream = Stream(ant.daemon.url, "/chat/stream", {"message": "go", "on_disconnect": "cancel"})
        stream.read_until("tool_output")
        stream.close()
        until(bee.model.hung_up.is_set, "the peer's model is let go", 5)


@pytest.mark.parametrize("hops", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_agents_do_not_ask_each_other_in_circles(tmp_path: Path, hops: int) -> None:
    limit = f"[limits]\nhops = {hops}\n"

    def always_asks(name: str) -> Script:
        """A model that asks `name` whatever it is asked, and then says what came of it."""

        def script(request: fake.Body) -> fake.Reply:
            last = request["messages"][-1]
            if last["role"] == "user":
                return ask(f"{last['content']}>{name}", name)
            result = json.loads(last["content"])
            return fake.text(result.get("error") or result["content"])

        return script

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bees_settings = f'{limit}[peers.ant]\naddress = "127.0.0.1:{port}"\n'
    with (
        agent(tmp_path / "b", always_asks("ant"), bees_settings) as bee,
        agent(tmp_path / "a", always_asks("bee"), limit + knows(bee, ""), port=port) as ant,
    ):
        events = ant.chat("q")
        sessions = ant.daemon.call("GET", "/sessions")[1]
    reason = f"({hops} of at most {hops}, [limits] hops)"
    assert reason in events[-1][1]["content"]
    assert ant.asked() == ["q", "q>bee>ant"][:hops]
    assert bee.asked() == ["q>bee"]
    assert len(sessions) == hops


def test_a_peer_that_is_not_known_is_answered_with_those_that_are(tmp_path: Path) -> None:
    settings = '[peers.bee]\naddress = "127.0.0.1:1"\n[peers.cat]\ntoken = "' + TOKEN + '"'
    with agent(tmp_path / "a", [ask("x", "dog"), ask("x", "cat"), fake.text("ok")], settings) as ant:
        ant.chat()
    errors = [json.loads(m["content"])["error"] for m in ant.model.requests[-1]["messages"] if m["role"] == "tool"]
    assert errors == [
        "there is no agent 'dog'; there are: bee, cat",
        "no address of cat is known: set `[peers.cat] address`",
    ]


def test_new_settings_count_for_the_next_turn(tmp_path: Path) -> None:
    script = [fake.text("nobody"), ask("x"), fake.text("ok")]
    with guarded(tmp_path / "b", [fake.text("yes")]) as bee, agent(tmp_path / "a", script, "# nothing") as ant:
        ant.chat()
        (ant.daemon.state / "test.toml").write_text(knows(bee))
        ant.daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "settings read again" in ant.daemon.log_text(), "the settings are read again")
        ant.chat()
    offered = [{t["function"]["name"] for t in request["tools"]} for request in ant.model.requests]
    assert ["ask_agent" in names for names in offered] == [False, True, True]
    assert ant.told()["content"] == "yes"
    assert TOKEN not in ant.daemon.log_text()


# --- from one machine to another ------------------------------------------------------------------


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan(2) as made:
        yield made


def on(host: Host, stack: ExitStack, folder: Path, script: Script, settings: str, port: int = 0) -> Agent:
    """An agent on a host of its own."""
    with host.inside():
        return stack.enter_context(agent(folder, script, settings, port))


OPEN = '[server]\nhost = ["0.0.0.0", "::"]\n'


@pytest.mark.slow
@pytest.mark.parametrize("way", ["IPv4", "IPv6", "Aegis"])
def test_an_agent_on_another_machine_answers(lan: Lan, tmp_path: Path, way: str) -> None:
    home, there = lan.hosts
    with ExitStack() as stack:
        bee = on(there, stack, tmp_path / "b", [fake.text("from ", "bee")], OPEN, 3300)
        token = (bee.daemon.state / "token").read_text().strip()
        settings = f'[peers.bee]\ntoken = "{token}"\n'
        if way == "Aegis":
            (tmp_path / "aegis").mkdir()
            (tmp_path / "aegis/net.toml").write_text(f'[peers.Bee]\nip = "{there.ip}/24"\n')
            settings += f'[discovery]\naegis_file = "{tmp_path}/aegis/net.toml"\n'
        else:
            settings += f'address = "{there.ip if way == "IPv4" else f"[{there.ip6}]"}"\n'
        ant = on(home, stack, tmp_path / "a", [ask("hello"), fake.text("done")], settings)
        with home.inside():
            events = ant.chat()
        told = ant.told()
    assert (told["success"], told["agent"], told["content"]) == (True, "bee", "from bee")
    assert "from bee" in "".join(data["content"] for name, data in events if name == "tool_output")
    assert bee.asked() == ["hello"]


@pytest.mark.slow
def test_an_agent_on_another_machine_refuses_without_its_token(lan: Lan, tmp_path: Path) -> None:
    home, there = lan.hosts
    with ExitStack() as stack:
        bee = on(there, stack, tmp_path / "b", [], OPEN)
        port = bee.address.rpartition(":")[2]
        known = f'[peers.bee]\naddress = "{there.ip}:{port}"\n[peers.wasp]\naddress = "[{there.ip6}]:{port}"\n'
        script = [ask("x"), ask("x", "wasp"), fake.text("ok")]
        ant = on(home, stack, tmp_path / "a", script, f'{known}token = "{OTHER}"\n')
        with home.inside():
            ant.chat()
    errors = [json.loads(m["content"])["error"] for m in ant.model.requests[-1]["messages"] if m["role"] == "tool"]
    assert len(errors) == 2
    assert all("refused (status 401, unauthorized): `[peers." in error for error in errors)
    assert bee.model.requests == []
