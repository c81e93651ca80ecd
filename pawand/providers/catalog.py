"""The table of providers: addresses, keys, default models, and the switches for thinking (facts 1.5, 2.4)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from pawand.config import Config, ProviderName
from pawand.errors import ConfigError

LOCAL_MODEL = "SmolLM2-135M-Instruct"


class Entry(Struct, frozen=True, kw_only=True):
    label: str
    """As `/models` spells it."""
    url: str = ""
    url_variable: str | None = None
    key_variable: str | None = None
    default_model: str | None = None


CATALOG: dict[ProviderName, Entry] = {
    "nvidia": Entry(
        label="Nvidia",
        url="https://integrate.api.nvidia.com/v1",
        url_variable="NVIDIA_API_URL",
        key_variable="NVIDIA_API_KEY",
        default_model="qwen/qwen3.5-122b-a10b",
    ),
    "openai": Entry(
        label="OpenAI",
        url="https://api.openai.com/v1",
        url_variable="OPENAI_API_URL",
        key_variable="OPENAI_API_KEY",
        default_model="gpt-4.1-mini",
    ),
    "ollama": Entry(label="Ollama", url="http://localhost:11434/v1", url_variable="OLLAMA_URL"),
    "mlx": Entry(label="Mlx", url="http://localhost:8080/v1"),
    "local": Entry(label="Local", default_model=LOCAL_MODEL),
}
KEY_VARIABLES = [entry.key_variable for entry in CATALOG.values() if entry.key_variable]


class Choice(Struct, frozen=True, kw_only=True):
    """The provider that the configuration comes to."""

    name: ProviderName
    label: str
    model: str
    url: str
    key: str | None
    fault: str | None
    """Why no request can succeed, naming what to set; None when all is there."""
    automatic: bool = False
    """Nothing was configured, so the embedded model stands in."""

    @property
    def embedded(self) -> bool:
        """The bundled weights: too small for tools or a long prompt."""
        return self.name == "local" and self.model == LOCAL_MODEL


_REASONERS = re.compile(r"(.*/)?(o[1-9]|gpt-[5-9])([-.].*)?")


def choose(config: Config, secrets: Mapping[str, str], env: Mapping[str, str], *, model_trusted: bool = True) -> Choice:
    """Raises ConfigError where a model must be named and none is, or a stranger names a file for the local one."""
    name, automatic = _name(config, secrets)
    entry = CATALOG[name]
    model = config.model or entry.default_model
    if model is None:
        raise ConfigError(f"provider {name} has no default model: set `model` in pawan.toml, PAWAN_MODEL or --model")
    url = config.base_url or (env.get(entry.url_variable) if entry.url_variable else None) or entry.url
    if name == "ollama":
        url = url.rstrip("/").removesuffix("/v1") + "/v1"
    key = secrets.get(entry.key_variable) if entry.key_variable else None
    fault = None
    if entry.key_variable and not key and (name == "nvidia" or url.rstrip("/") == entry.url):
        fault = (
            f"no API key for provider {name}: set {entry.key_variable} in the environment "
            "or in ~/.config/pawan/.env (mode 0600) and restart pawand"
        )
    if name == "local" and not local_installed():
        fault = "provider local needs the extra: pip install 'pawand[local]'"
    if name == "local" and model != LOCAL_MODEL and not model_trusted:
        raise ConfigError(
            f"the workspace's pawan.toml may not name a GGUF file ({model}): use --model or ~/.config/pawan/pawan.toml"
        )
    return Choice(
        name=name, label=entry.label, model=model, url=url.rstrip("/"), key=key, fault=fault, automatic=automatic
    )


def choose_cloud(config: Config, secrets: Mapping[str, str], env: Mapping[str, str]) -> Choice | None:
    """The provider of `[cloud]`, which is asked when the first one has failed; None where there is no such table."""
    cloud = config.cloud
    if cloud is None:
        return None
    as_first = msgspec.structs.replace(config, provider=cloud.provider, model=cloud.model, base_url=None)
    return choose(as_first, secrets, env)


def _name(config: Config, secrets: Mapping[str, str]) -> tuple[ProviderName, bool]:
    if config.provider:
        return config.provider, False
    if "NVIDIA_API_KEY" in secrets:
        return "nvidia", False
    if "OPENAI_API_KEY" in secrets:
        return "openai", False
    if config.model is None and local_installed():
        return "local", True
    return "nvidia", False


def local_installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


def thinking_switch(model: str, *, wanted: bool) -> dict[str, Any]:
    """The request fields that turn a model's thinking on or off; empty for a model without such a switch."""
    name = model.lower()
    if "mistral-small-4" in name:
        return {"reasoning_effort": "high" if wanted else "none"}
    if "glm" in name:
        return {"chat_template_kwargs": {"enable_thinking": wanted, "clear_thinking": False}}
    if "gemma" in name:
        return {"chat_template_kwargs": {"enable_thinking": wanted}}
    if "qwen" in name:  # Qwen3's own template and those of NVIDIA call it differently; each passes over the other's
        return {"chat_template_kwargs": {"thinking": wanted, "enable_thinking": wanted}}
    if "deepseek" in name:
        return {"chat_template_kwargs": {"thinking": wanted}}
    return {}


def sampling(model: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request fields for how a model answers: OpenAI's reasoning models refuse temperature and top_p, and call
    the limit of an answer otherwise (nullclaw/nullclaw#22)."""
    if _REASONERS.fullmatch(model.lower()):
        return {"max_completion_tokens": options["max_tokens"]}
    return options


def wants_short_ids(model: str) -> bool:
    """Whether the ids of tool calls must be nine letters and digits: Mistral's API and chat templates refuse others
    (vllm-project/vllm#9019, sst/opencode#1680)."""
    name = model.lower()
    return any(family in name for family in ("mistral", "mixtral", "ministral", "codestral", "devstral", "magistral"))


def wants_reasoning(model: str) -> bool:
    """Whether the reasoning beside a tool call has to be sent back with that call (as `reasoning_content`).

    DeepSeek's thinking mode answers 400 without it, an empty one included (api-docs.deepseek.com/guides/thinking_mode;
    anomalyco/opencode#24722, deepseek-ai/deepseek-harness#739), and so does Kimi ("reasoning_content is missing in
    assistant tool call message", cloudwego/eino-ext#700). GLM wants it unchanged, for which `clear_thinking` is false
    above (docs.z.ai/guides/capabilities/thinking-mode); MiniMax M2 is made to think on between its calls
    (docs.vllm.ai, features/interleaved_thinking).
    """
    name = model.lower()
    return any(family in name for family in ("deepseek", "glm", "kimi", "minimax"))
