"""The application of ``fastapi_app.py`` for aiohttp.

Run it with ``python examples/aiohttp_app.py`` and ask it for ``/modules/argparse``, twice.
"""

import argparse
from collections.abc import AsyncIterator
from dataclasses import asdict

from aiohttp import web
from aiohttp.typedefs import Handler
from module_facts import ModuleFacts, ModuleSource, module_paths
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from request_spans import install, request_span, shown

from asynccache import Cache

__all__ = ["create_app", "main"]


def create_app(source: ModuleSource | None = None, *, spans: InMemorySpanExporter | None = None) -> web.Application:
    """The application.

    Args:
        source: Where facts come from; the application enters and leaves it.
        spans: What ``/spans`` shows.
    """
    modules = source or ModuleSource()
    cache = Cache("memory://?max_entries=1000", name="modules", ttl="10m")

    @cache.memoize(ttl="5m", grace="1h", key="module:{name}", tags=["modules"])
    async def get_facts(name: str) -> ModuleFacts:
        return await modules.facts(name)

    async def opened(_: web.Application) -> AsyncIterator[None]:
        async with modules, cache:  # the cache closes first: no load outlives it
            yield

    def known(request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in module_paths():
            raise web.HTTPNotFound(text=f"the standard library has no module {name!r}")
        return name

    async def module(request: web.Request) -> web.Response:
        return web.json_response(asdict(await get_facts(known(request))))

    async def refresh(request: web.Request) -> web.Response:
        return web.json_response(asdict(await get_facts.refresh(known(request))))

    async def forget(request: web.Request) -> web.Response:
        await get_facts.invalidate(known(request))
        return web.Response(status=204)

    async def forget_all(_: web.Request) -> web.Response:
        await cache.invalidate_tags("modules")
        return web.Response(status=204)

    async def stats(_: web.Request) -> web.Response:
        return web.json_response({"cache": asdict(cache.stats()), "computed": dict(modules.computed)})

    async def recorded(_: web.Request) -> web.Response:
        return web.json_response([asdict(span) for span in shown(spans)])

    app = web.Application(middlewares=[spanned])
    app.cleanup_ctx.append(opened)
    app.add_routes(
        [
            web.get("/modules/{name}", module),
            web.post("/modules/{name}/refresh", refresh),
            web.delete("/modules/{name}", forget),
            web.delete("/modules", forget_all),
            web.get("/stats", stats),
            web.get("/spans", recorded),
        ]
    )
    return app


@web.middleware
async def spanned(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A span around every request: the outermost middleware."""
    with request_span(request.method, request.path, request.headers) as span:
        route = request.match_info.route.resource
        if route is not None:
            span.update_name(f"{request.method} {route.canonical}")
            span.set_attribute("http.route", route.canonical)
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            span.set_attribute("http.response.status_code", answer.status)
            raise
        span.set_attribute("http.response.status_code", response.status)
        return response


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    web.run_app(create_app(spans=install()), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
