"""The samples of the README against a daemon: only the port is replaced."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.fixture
def pawand(tmp_path: Path) -> Iterator[harness.Process]:
    with OpenAIServer(lambda _: fake.text("Hello", " from", " Pawan")) as upstream:
        env = {"OPENAI_API_URL": upstream.url, "OPENAI_API_KEY": harness.API_KEY, "PAWAN_MODEL": harness.MODEL}
        with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as process:
            yield process


def blocks(language: str, word: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [block for block in found if word in block]


def with_port(text: str, url: str) -> str:
    return text.replace("localhost:3300", url.removeprefix("http://"))


def test_the_python_sample(pawand: harness.Process) -> None:
    samples = blocks("python", "sseclient")
    assert samples
    for sample in samples:
        ran = subprocess.run(
            [sys.executable, "-c", with_port(sample, pawand.url)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith("Hello from Pawan\n")
        assert ran.stdout.rstrip().endswith("Complete!")


SAMPLE_OF_THE_RUST_README = """
import requests
import sseclient

response = requests.post('http://localhost:3300/chat', json={
    'message': 'Hello, Pawan!'
})
print(response.json()['content'])

response = requests.post('http://localhost:3300/chat/stream', json={
    'message': 'Explain Rust'
}, stream=True)

client = sseclient.SSEClient(response)
for event in client.events():
    if event.event == 'token':
        print(event.data, end='', flush=True)
    elif event.event == 'done':
        print('\\nComplete!')
        break
"""


def test_the_python_sample_of_pawan_api(pawand: harness.Process) -> None:
    command = [sys.executable, "-c", with_port(SAMPLE_OF_THE_RUST_README, pawand.url)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith('Hello from Pawan\n{"content":"Hello","iteration":1}{"content":" from"')
    assert ran.stdout.endswith("\nComplete!\n")


def test_the_curl_samples(pawand: harness.Process) -> None:
    samples = [sample for block in blocks("bash", "curl") for sample in commands(block) if sample.startswith("curl")]
    assert len(samples) >= 5
    for sample in samples:
        command = with_port(sample, pawand.url).replace("curl ", "curl -sS --fail-with-body --max-time 20 ", 1)
        ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, (sample, ran.stdout, ran.stderr)
        if "/chat/stream" in sample:
            assert [name for name, _ in harness.parse_events(ran.stdout)] == [
                "start",
                "token",
                "token",
                "token",
                "done",
            ]
        elif "/chat" in sample:
            assert '"content":"Hello from Pawan"' in ran.stdout


def commands(block: str) -> list[str]:
    """The shell lines of a block, continued ones joined."""
    joined = re.sub(r"\\\n\s*", " ", block)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]
