"""Which provider, model, address and key a configuration comes to."""

from __future__ import annotations

from typing import Any

import pytest

from pawand.config import Config
from pawand.errors import ConfigError
from pawand.providers.catalog import (
    CATALOG,
    KEY_VARIABLES,
    LOCAL_MODEL,
    Choice,
    choose,
    local_installed,
    thinking_switch,
    wants_reasoning,
)

NVIDIA = {"NVIDIA_API_KEY": "nvapi-0123456789"}
OPENAI = {"OPENAI_API_KEY": "sk-0123456789"}
NVIDIA_URL, OPENAI_URL = "https://integrate.api.nvidia.com/v1", "https://api.openai.com/v1"
NO_KEY = (
    "no API key for provider {}: set {} in the environment or in ~/.config/pawan/.env (mode 0600) and restart pawand"
)
NO_NVIDIA, NO_OPENAI = NO_KEY.format("nvidia", "NVIDIA_API_KEY"), NO_KEY.format("openai", "OPENAI_API_KEY")
needs_local = pytest.mark.skipif(not local_installed(), reason="the `local` extra is not installed")


def test_the_variables_that_hold_keys() -> None:
    assert KEY_VARIABLES == ["NVIDIA_API_KEY", "OPENAI_API_KEY"]


@pytest.mark.parametrize(
    ("config", "secrets", "name"),
    [
        ({}, NVIDIA, "nvidia"),
        ({}, OPENAI, "openai"),
        ({}, NVIDIA | OPENAI, "nvidia"),
        ({"provider": "openai"}, NVIDIA, "openai"),
        ({"provider": "ollama", "model": "m"}, NVIDIA, "ollama"),
        ({"model": "m"}, {}, "nvidia"),
        pytest.param({}, {}, "local", marks=needs_local),
    ],
)
def test_the_provider(config: dict[str, Any], secrets: dict[str, str], name: str) -> None:
    choice = choose(Config(**config), secrets, {})
    assert (choice.name, choice.label) == (name, CATALOG[choice.name].label)
    assert choice.automatic == (not config and not secrets)


@pytest.mark.parametrize(
    ("config", "env", "url"),
    [
        ({"provider": "nvidia"}, {}, NVIDIA_URL),
        ({"provider": "nvidia"}, {"NVIDIA_API_URL": "http://n:1/v1/", "OPENAI_API_URL": "http://no"}, "http://n:1/v1"),
        ({"provider": "nvidia", "base_url": "http://b/v1"}, {"NVIDIA_API_URL": "http://n"}, "http://b/v1"),
        ({"provider": "openai"}, {}, OPENAI_URL),
        ({"provider": "openai"}, {"OPENAI_API_URL": ""}, OPENAI_URL),
        ({"provider": "openai"}, {"OPENAI_API_URL": "http://o/v1"}, "http://o/v1"),
        ({"provider": "openai", "base_url": "http://b/v1/"}, {"OPENAI_API_URL": "http://o/v1"}, "http://b/v1"),
        ({"provider": "ollama"}, {}, "http://localhost:11434/v1"),
        ({"provider": "ollama"}, {"OLLAMA_URL": "http://h:1"}, "http://h:1/v1"),
        ({"provider": "ollama"}, {"OLLAMA_URL": "http://h:1/"}, "http://h:1/v1"),
        ({"provider": "ollama"}, {"OLLAMA_URL": "http://h:1/v1/"}, "http://h:1/v1"),
        ({"provider": "ollama", "base_url": "http://b:2"}, {"OLLAMA_URL": "http://h:1"}, "http://b:2/v1"),
        ({"provider": "mlx"}, {}, "http://localhost:8080/v1"),
        ({"provider": "mlx", "base_url": "http://b/v1"}, {}, "http://b/v1"),
        ({"provider": "local"}, {}, ""),
    ],
)
def test_the_address(config: dict[str, Any], env: dict[str, str], url: str) -> None:
    assert choose(Config(model=LOCAL_MODEL, **config), {}, env).url == url


@pytest.mark.parametrize(
    ("config", "secrets", "key", "fault"),
    [
        ({"provider": "nvidia"}, NVIDIA, NVIDIA["NVIDIA_API_KEY"], None),
        ({"provider": "nvidia"}, OPENAI, None, NO_NVIDIA),
        ({"provider": "nvidia", "base_url": "http://b"}, {}, None, NO_NVIDIA),
        ({"provider": "openai"}, OPENAI | NVIDIA, OPENAI["OPENAI_API_KEY"], None),
        ({"provider": "openai"}, NVIDIA, None, NO_OPENAI),
        ({"provider": "openai", "base_url": f"{OPENAI_URL}/"}, {}, None, NO_OPENAI),
        ({"provider": "openai", "base_url": "http://b/v1"}, {}, None, None),
        ({"provider": "openai", "base_url": "http://b/v1"}, OPENAI, OPENAI["OPENAI_API_KEY"], None),
        ({"provider": "ollama", "model": "m"}, OPENAI | NVIDIA, None, None),
        ({"provider": "mlx", "model": "m"}, OPENAI | NVIDIA, None, None),
        ({"model": "m"}, {}, None, NO_NVIDIA),
        pytest.param({"provider": "local"}, OPENAI | NVIDIA, None, None, marks=needs_local),
    ],
)
def test_the_key_and_what_is_missing(
    config: dict[str, Any], secrets: dict[str, str], key: str | None, fault: str | None
) -> None:
    choice = choose(Config(**config), secrets, {})
    assert (choice.key, choice.fault) == (key, fault)


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({"provider": "nvidia"}, "qwen/qwen3.5-122b-a10b"),
        ({"provider": "openai"}, "gpt-4.1-mini"),
        ({"provider": "local"}, LOCAL_MODEL),
        ({"provider": "openai", "model": "mine"}, "mine"),
    ],
)
def test_the_model(config: dict[str, Any], model: str) -> None:
    choice = choose(Config(**config), NVIDIA, {})
    assert choice.model == model
    assert choice.embedded == (model == LOCAL_MODEL)


@pytest.mark.parametrize("name", ["ollama", "mlx"])
def test_a_provider_without_a_default_model_asks_for_one(name: Any) -> None:
    with pytest.raises(ConfigError, match=f"provider {name} has no default model: set `model` in pawan.toml, "):
        choose(Config(provider=name), {}, {})


def test_only_a_trusted_layer_names_a_gguf_file() -> None:
    def local(model: str, *, trusted: bool) -> Choice:
        return choose(Config(provider="local", model=model), {}, {}, model_trusted=trusted)

    assert local("/m.gguf", trusted=True).embedded is False
    assert local(LOCAL_MODEL, trusted=False).embedded
    with pytest.raises(ConfigError, match=r"the workspace's pawan.toml may not name a GGUF file \(/m.gguf\)"):
        local("/m.gguf", trusted=False)
    assert choose(Config(provider="openai", model="/m.gguf"), {}, {}, model_trusted=False).model == "/m.gguf"


@pytest.mark.parametrize(
    ("model", "on", "off"),
    [
        ("mistralai/mistral-small-4-119b", {"reasoning_effort": "high"}, {"reasoning_effort": "none"}),
        (
            "z-ai/GLM-5",
            {"chat_template_kwargs": {"enable_thinking": True, "clear_thinking": False}},
            {"chat_template_kwargs": {"enable_thinking": False, "clear_thinking": False}},
        ),
        (
            "google/gemma-4",
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        (
            "qwen/Qwen3",
            {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}},
            {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}},
        ),
        ("deepseek-v4", {"chat_template_kwargs": {"thinking": True}}, {"chat_template_kwargs": {"thinking": False}}),
        ("mistral-large", {}, {}),
        ("gpt-4.1-mini", {}, {}),
    ],
)
def test_thinking_is_switched_as_the_model_understands(model: str, on: dict[str, Any], off: dict[str, Any]) -> None:
    assert thinking_switch(model, wanted=True) == on
    assert thinking_switch(model, wanted=False) == off


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("deepseek-ai/DeepSeek-V4-Pro", True),
        ("z-ai/glm-4.7", True),
        ("moonshotai/Kimi-K2-Thinking", True),
        ("MiniMaxAI/MiniMax-M2", True),
        ("qwen/qwen3.5-122b-a10b", False),
        ("gpt-4.1-mini", False),
    ],
)
def test_who_wants_the_reasoning_back(model: str, wanted: bool) -> None:
    assert wants_reasoning(model) is wanted
