"""The server of the page: bound to this machine by default, with a cache of its own that goes when it ends.

Gradio's server would fetch addresses that a browser names in the place of a file, and keeps a folder for examples in
the current one. Both are closed here: what is served lies in the cache, and nothing is fetched.
"""

import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradio import Blocks

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST_REQUEST = 1 << 20
"""Bytes of a request that is no upload: settings, and names of files that were uploaded."""

SESSIONS = 32
"""Visitors whose picture and latents are kept; beyond it the one who came first has to drop the picture again."""

_UPLOAD = "/gradio_api/upload"

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Address:
    """Where the page is served: host and port of this machine, and whether Gradio's public tunnel leads to it."""

    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False

    @property
    def is_local(self) -> bool:
        """Return whether programs of this machine alone reach the page."""
        return self.host in ("127.0.0.1", "localhost", "::1") and not self.share


@contextmanager
def private_cache() -> Iterator[Path]:
    """Give Gradio, before it is imported, a new folder for uploads and results; remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="ssdd-app-", ignore_cleanup_errors=True) as folder:
        path = Path(folder).resolve()
        (path / "examples").mkdir()
        os.environ |= {"GRADIO_TEMP_DIR": str(path), "GRADIO_EXAMPLES_CACHE": str(path / "examples")}
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_ALLOWED_PATHS": ""}
        yield path


@contextmanager
def serve(page: "Blocks", address: Address, megabytes: int) -> Iterator[str]:
    """Serve a page until the end of the block; yield its URL.

    Args:
        page: with its events; its uploads go with it.
        address: where.
        megabytes: of the largest upload.

    Raises OSError if the port is taken.
    """
    from gradio.themes import Default
    from starlette.middleware import Middleware

    from .markup import CSS

    system = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
    theme = Default(primary_hue="blue", font=system, font_mono=("ui-monospace", "Menlo", "Consolas", "monospace"))
    theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    page.queue(max_size=SESSIONS, default_concurrency_limit=4, api_open=False)
    try:
        _, local, shared = page.launch(
            server_name=address.host,
            server_port=address.port,
            share=address.share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            allowed_paths=[],
            max_file_size=f"{megabytes}mb",
            state_session_capacity=SESSIONS,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            app_kwargs={"middleware": [Middleware(_OwnFilesOnly)], "docs_url": None, "redoc_url": None},
            theme=theme,
            css=CSS,
        )
    except OSError as error:
        where = f"{address.host}:{address.port}"
        raise OSError(
            f"expected to listen at {where}, found it taken or not ours: pass another --port or --host"
        ) from error
    try:
        yield shared or local
    finally:
        page.close(verbose=False)


class _OwnFilesOnly:
    """Refuse requests that would make the server fetch something, and let the browser load nothing from elsewhere."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        if "/proxy=" in path or "://" in path:
            return await PlainTextResponse("refused", 403)(scope, receive, send)
        if scope["method"] == "POST" and path != _UPLOAD:
            body = await _read(receive)
            if body is None:
                return await PlainTextResponse("refused", 413)(scope, receive, send)
            if _names_address(body):
                return await PlainTextResponse("refused", 403)(scope, receive, send)
            receive = _again(body, receive)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = [(b"content-security-policy", _POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


async def _read(receive: Receive) -> bytes | None:
    """Return the body of a request, and None if it is too large."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > LARGEST_REQUEST:
            return None
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read, and then what is still to come."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


def _names_address(body: bytes) -> bool:
    """Return whether the JSON in a body has an address where the path of a file belongs."""

    def found(value: Any) -> bool:
        if isinstance(value, dict):
            return "://" in str(value.get("path", "")) or any(map(found, value.values()))
        return isinstance(value, list) and any(map(found, value))

    try:
        return found(json.loads(body))
    except RecursionError:  # nobody needs so many brackets
        return True
    except ValueError:  # no JSON: no files
        return False
