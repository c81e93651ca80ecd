"""What a provider's error says: its words, whether waiting helps, whether the conversation is too long."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from pawand.errors import ProviderError
from pawand.redact import Redactor

MAX_ERROR_CHARS = 500
RETRIABLE = frozenset({408, 409, 429})
"""Statuses below 500 after which the same request may succeed."""

_TOO_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"})
_TOO_LONG_PHRASES = re.compile(
    r"maximum (?:context|prompt|model) length"
    r"|context[ _](?:length|window|size|limit)[ _](?:was |is )?exceed"
    r"|exceed\w* (?:the |its |max |maximum |available |model'?s? |model's maximum )*context"
    r"|context window exceeds"
    r"|(?:greater|longer|larger) than the (?:model'?s? |maximum )?(?:context|model) (?:length|window|size)"
    r"|context length is only"
    r"|prompt (?:is )?too long|input is too long|prompt exceeds max length"
    r"|input token count .{0,40}exceeds|range of input length|exceeded model token limit"
    r"|reduce the length of the (?:messages|prompt|input)",
    re.IGNORECASE,
)


def is_context_length(status: int | None, code: object, type: object, message: str) -> bool:
    """Whether the provider says that the conversation is too long; `status` is None for an error inside a stream.

    Sources. By status: 413. By code or type: OpenAI (`context_length_exceeded`, `string_above_max_length`), llama.cpp
    (`exceed_context_size_error`, ggml-org/llama.cpp#15780). By words, since the others send neither, or a status
    alone: vLLM, NVIDIA NIM, DeepSeek, OpenRouter ("This model's maximum context length is …", "longer than the maximum
    model length", "the model's context length is only …"), SGLang ("longer than the model's context length"), Mistral
    ("too large for model with … maximum context length"), Ollama ("the input length exceeds the context length",
    "prompt too long; exceeded max context length"), LM Studio ("greater than the context length", under status 200),
    llama.cpp and llama-cpp-python ("exceeds the available context size", "exceed context window of …"), OpenAI
    ("exceeds the context window"), Anthropic ("prompt is too long", "exceed context limit"), Groq ("reduce the length
    of the messages"), xAI ("maximum prompt length"), Gemini ("input token count … exceeds"), Bedrock ("input is too
    long"), Moonshot ("exceeded model token limit"), MiniMax ("context window exceeds limit"), Z.ai ("Prompt exceeds
    max length"), DashScope ("Range of input length").
    """
    if status == 413 or _TOO_LONG_CODES.intersection(word for word in (code, type) if isinstance(word, str)):
        return True
    return status in (None, 400, 422, 500) and _TOO_LONG_PHRASES.search(message) is not None


def failure_of(
    error: Any, status: int | None, redactor: Redactor, prefix: str, retry_after: float | None = None
) -> ProviderError:
    """The failure that an error body means; `status` is the one that it came with or, inside a stream, names itself."""
    detail = detail_of(error, redactor)
    inner = error.get("error") if isinstance(error, dict) else None
    fields = inner if isinstance(inner, dict) else error if isinstance(error, dict) else {}
    too_long = is_context_length(status, fields.get("code"), fields.get("type"), detail)
    final = status is not None and status < 500 and status not in RETRIABLE
    return ProviderError(
        f"{prefix}: {detail}",
        retriable=not (final or too_long),
        status=status,
        retry_after=retry_after,
        context_length=too_long,
    )


def detail_of(error: Any, redactor: Redactor) -> str:
    """The human part of an error body: `error.message`, `detail`, `message`, or all of it."""
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and error.get(key):
            return detail_of(error[key], redactor)
    text = error if isinstance(error, str) else msgspec.json.encode(error).decode()
    return redactor.log(" ".join(text.split()))[:MAX_ERROR_CHARS]
