"""The server's routes for the browser's side of the pack, below /ld3/.

    GET  /ld3/schedule?name=FILE     {"name", "summary", "line", "sigmas"}
    GET  /ld3/picture?name=FILE      a PNG of its noise levels
    POST /ld3/rename                 {"name", "new"}  -> {"name"}
    POST /ld3/delete                 {"name"}         -> {}
    POST /ld3/import                 {"line", "name"} -> {"name"}

A request that cannot be met is answered by 400 and {"error": text}. ComfyUI's own middleware
refuses requests of other web sites; POST also wants JSON, which a form of another site cannot send.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ..schedule import ScheduleInfo
from ..schedule_file import read_info
from ..shown_text import shown
from . import folders, library

JSON = "application/json"


def register(summary: Callable[[ScheduleInfo], str]) -> None:
    """Add the routes to a running server; `summary` puts a schedule into words."""
    # ComfyUI has imported its server before any pack; elsewhere, as in tests, importing it fails
    server = sys.modules.get("server")
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if instance is None:
        return

    def described(data: dict[str, Any]) -> dict[str, Any]:
        name = _text(data, "name")
        found = library.contents(name)
        info = read_info(folders.schedule_path(name))
        return found | {"summary": shown(summary(info), 2000) if info else ""}

    def renamed(data: dict[str, Any]) -> dict[str, Any]:
        return {"name": library.rename(_text(data, "name"), _text(data, "new"))}

    def deleted(data: dict[str, Any]) -> dict[str, Any]:
        library.delete(_text(data, "name"))
        return {}

    def imported(data: dict[str, Any]) -> dict[str, Any]:
        return {"name": library.take_line(_text(data, "line"), _text(data, "name"))}

    async def drawn(request: web.Request) -> web.Response:
        try:
            png = await asyncio.to_thread(library.picture, request.query.get("name", ""))
        except (ValueError, OSError) as error:
            return _refused(error)
        return web.Response(body=png, content_type="image/png")

    routes = instance.routes
    routes.get("/ld3/schedule")(_answering(described, "query"))
    routes.get("/ld3/picture")(drawn)
    for path, action in (("rename", renamed), ("delete", deleted), ("import", imported)):
        routes.post(f"/ld3/{path}")(_answering(action, "body"))


def _answering(action: Callable[[dict[str, Any]], dict[str, Any]], source: str) -> Any:
    """A handler that runs an action in a thread, with a request's query or JSON body."""

    async def handler(request: web.Request) -> web.Response:
        try:
            if source == "body" and request.content_type != JSON:
                raise ValueError(f"send {JSON}, not {request.content_type}")
            data = dict(request.query) if source == "query" else await request.json()
            if not isinstance(data, dict):
                raise ValueError("send an object")
            return web.json_response(await asyncio.to_thread(action, data))
        except (ValueError, OSError) as error:
            return _refused(error)

    return handler


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} is missing")
    return value


def _refused(error: Exception) -> web.Response:
    return web.json_response({"error": shown(str(error), 2000)}, status=400)
