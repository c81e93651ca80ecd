"""What a model reads of an MCP server's answer to a call."""

from __future__ import annotations

from typing import Any

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ResourceLink,
    TextContent,
)

from pawand.errors import ToolError


def value(result: CallToolResult) -> Any:
    """The text; structured content where there is no text. Raises ToolError with the text for a failed call."""
    text = "\n".join(map(_text, result.content))
    if result.is_error:
        raise ToolError(text or "the server says that the call failed, and no more")
    if result.structured_content is None or any(isinstance(block, TextContent) for block in result.content):
        return text
    return {"content": text, "structured": result.structured_content} if text else result.structured_content


def _text(block: ContentBlock) -> str:
    """Of what is no text a note, since models are sent text only."""
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, ImageContent | AudioContent):
        return _note(block.mime_type, block.data)
    if isinstance(block, ResourceLink):
        return block.uri
    if isinstance(block.resource, BlobResourceContents):
        return _note(block.resource.mime_type or "application/octet-stream", block.resource.blob, block.resource.uri)
    return block.resource.text


def _note(kind: str, base64: str, uri: str = "") -> str:
    size = len(base64) * 3 // 4 - base64.endswith("=") - base64.endswith("==")
    return f"[{uri + ': ' if uri else ''}{kind}, {size} bytes]"
