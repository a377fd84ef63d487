"""A memoized function is a function to FastAPI too."""

from typing import Annotated, Any

import fastapi
import httpx

from asynccache import Cache


async def test_as_a_dependency_and_as_a_route() -> None:
    """FastAPI takes a memoized function, and a memoized method, for a route's dependency and for the route itself."""
    cache = Cache(ttl="10m")
    app = fastapi.FastAPI()
    runs: list[Any] = []

    @cache.memoize()
    async def user(user_id: int, verbose: bool = False) -> dict[str, Any]:
        runs.append(user_id)
        return {"id": user_id, "verbose": verbose}

    class Shop:
        def __cache_key__(self) -> str:
            return "shop"

        @cache.memoize()
        async def price(self, item: str) -> int:
            runs.append(item)
            return len(item)

    @app.get("/users/{user_id}")
    async def show(found: Annotated[dict[str, Any], fastapi.Depends(user)]) -> dict[str, Any]:
        return found

    @app.get("/prices/{item}")
    async def show_price(found: Annotated[int, fastapi.Depends(Shop().price)]) -> int:
        return found

    app.get("/direct/{user_id}")(user)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(2):
            assert (await client.get("/users/7")).json() == {"id": 7, "verbose": False}
            assert (await client.get("/users/7?verbose=1")).json() == {"id": 7, "verbose": True}
            assert (await client.get("/prices/tea")).json() == 3
            assert (await client.get("/direct/7")).json() == {"id": 7, "verbose": False}
        assert (await client.get("/users/seven")).status_code == 422
    assert runs == [7, 7, "tea"]
    await cache.aclose()
