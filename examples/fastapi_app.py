"""A FastAPI application in front of a slow source, with asynccache between them.

Run it with ``python examples/fastapi_app.py`` and ask it for ``/modules/argparse``, twice.
"""

import argparse
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, HTTPException
from module_facts import ModuleFacts, ModuleSource, module_paths
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from request_spans import ShownSpan, install, request_span, shown
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asynccache import Cache

__all__ = ["create_app", "main"]


def create_app(
    source: ModuleSource | None = None, *, spans: InMemorySpanExporter | None = None, folder: str | None = None
) -> FastAPI:
    """The application.

    Args:
        source: Where facts come from; the application enters and leaves it.
        spans: What ``/spans`` shows.
        folder: Where facts are kept for the next start, and shared with other processes; nowhere when it is left out.
    """
    modules = source or ModuleSource()
    near = "memory://?max_entries=1000"
    cache = (
        Cache(near, name="modules", ttl="10m")
        if folder is None
        else Cache(f"file://{quote(folder)}", local=near, name="modules", ttl="10m")
    )

    @cache.memoize(ttl="5m", grace="1h", key="module:{name}", tags=["modules"])
    async def get_facts(name: str) -> ModuleFacts:
        return await modules.facts(name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with modules, cache:  # the cache closes first: no load outlives it
            yield

    # a recent FastAPI makes spans of its own, an older one does not: ours are the same under both
    app = FastAPI(title="Facts about the standard library", lifespan=lifespan, telemetry={"tracing": False})
    app.add_middleware(RequestSpans)

    def known(name: str) -> str:
        if name not in module_paths():
            raise HTTPException(404, f"the standard library has no module {name!r}")
        return name

    @app.get("/modules/{name}")
    async def module(name: str) -> ModuleFacts:
        """The facts about a module, at most five minutes old, or up to an hour more while they cannot be computed."""
        return await get_facts(known(name))

    @app.post("/modules/{name}/refresh")
    async def refresh(name: str) -> ModuleFacts:
        """The facts about a module, computed now."""
        return await get_facts.refresh(known(name))

    @app.delete("/modules/{name}", status_code=204)
    async def forget(name: str) -> None:
        """Forget what is known about a module."""
        await get_facts.invalidate(known(name))

    @app.delete("/modules", status_code=204)
    async def forget_all() -> None:
        """Forget what is known about all modules."""
        await cache.invalidate_tags("modules")

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        """What the cache counted, and how often the source computed what."""
        return {"cache": asdict(cache.stats()), "computed": dict(modules.computed)}

    @app.get("/spans")
    async def recorded() -> list[ShownSpan]:
        """The spans of the requests whose caller asked for a trace."""
        return shown(spans)

    return app


class RequestSpans:
    """A span around every request: the outermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an ASGI application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection of the ASGI server."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with request_span(scope["method"], scope["path"], Headers(scope=scope)) as span:

            async def send_and_look(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self.app(scope, receive, send_and_look)
            if span.is_recording() and (route := getattr(scope.get("route"), "path", None)):
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--folder", help="keep the facts there for the next start (default: nowhere)")
    parser.add_argument("--until-stdin-ends", action="store_true", help="stop when stdin is closed")
    options = parser.parse_args()

    app = create_app(spans=install(), folder=options.folder)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level=options.log_level, access_log=False, timeout_graceful_shutdown=2)
    )
    if options.until_stdin_ends:
        threading.Thread(target=_stop_when_stdin_ends, args=[server], daemon=True).start()
    with socket.create_server((options.host, options.port), backlog=2048) as listener:
        host, port = listener.getsockname()[:2]
        print(f"http://{host}:{port}", flush=True)  # who connects from here on waits in line until the server is up
        server.run(sockets=[listener])


def _stop_when_stdin_ends(server: uvicorn.Server) -> None:
    while os.read(0, 1024):
        pass
    server.should_exit = True


if __name__ == "__main__":
    main()
