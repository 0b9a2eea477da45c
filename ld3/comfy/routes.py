"""The server's routes for the browser's side of the pack, below /ld3/.

    GET  /ld3/schedule?name=FILE     {"name", "summary", "line", "sigmas", "note", "listed"}
    GET  /ld3/picture?name=FILE      a PNG of its noise levels
    POST /ld3/rename                 {"name", "new"}  -> {"name"}
    POST /ld3/delete                 {"name"}         -> {}
    POST /ld3/import                 {"line", "name"} -> {"name"}
    POST /ld3/note                   {"name", "note"} -> {}
    POST /ld3/list                   {"name", "listed": true or false} -> {}

and a node's help page in any language, which is English where there is no other:

    GET  /extensions/PACK/docs/NODE/LANGUAGE.md

A request that cannot be met is answered by 400 and {"error": text}. ComfyUI's own middleware
refuses requests of other web sites; POST also wants JSON, which a form of another site cannot send.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web

from ..schedule import ScheduleInfo
from ..schedule_file import read_info
from ..shown_text import shown
from . import folders, library, scheduler_list

JSON = "application/json"
PACK = Path(__file__).parents[2]  # its name in custom_nodes, where it may be a link


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

    def noted(data: dict[str, Any]) -> dict[str, Any]:
        note = data.get("note")
        if not isinstance(note, str):
            raise ValueError("note is missing")
        library.write_note(_text(data, "name"), note)
        return {}

    def listed(data: dict[str, Any]) -> dict[str, Any]:
        change = scheduler_list.add if data.get("listed") is True else scheduler_list.remove
        change(_text(data, "name"))
        return {}

    async def drawn(request: web.Request) -> web.Response:
        try:
            png = await asyncio.to_thread(library.picture, request.query.get("name", ""))
        except (ValueError, OSError) as error:
            return _refused(error)
        return web.Response(body=png, content_type="image/png")

    routes = instance.routes
    # Frontends ask for it before docs/NODE.md, and log an error where there is none
    # (1.47 to 1.58, nodeHelpService).
    routes.get(f"/extensions/{quote(PACK.name)}/docs/{{node}}/{{language}}.md")(_help_page)
    routes.get("/ld3/schedule")(_answering(described, "query"))
    routes.get("/ld3/picture")(drawn)
    actions = {"rename": renamed, "delete": deleted, "import": imported}
    for path, action in (actions | {"note": noted, "list": listed}).items():
        routes.post(f"/ld3/{path}")(_answering(action, "body"))


async def _help_page(request: web.Request) -> web.StreamResponse:
    """The page in the language that is asked for, or else in English; only files of web/docs."""
    folder, node = (PACK / "web" / "docs").resolve(), request.match_info["node"]
    for name in (f"{node}/{request.match_info['language']}.md", f"{node}.md"):
        path = folder / name
        if "\0" not in name and folder in path.resolve().parents and path.is_file():
            return web.FileResponse(path, headers={"Content-Type": "text/markdown; charset=utf-8"})
    raise web.HTTPNotFound()


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
