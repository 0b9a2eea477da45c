"""Write locales/en/nodeDefs.json from the nodes' schemas, and bring the translations up to date.

    python scripts/locales.py --comfyui DIR

Run it after a text of a node was added or changed. Translations are edited by hand in
locales/LANGUAGE/; of a text whose English changed, the translation is removed unless another node
has the same new text, so that the test of the locales lists it until it is translated again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.comfyui_server import ComfyServer  # noqa: E402

LOCALES = ROOT / "locales"
ENGLISH = "en"
LANGUAGES = ("zh", "ja", "ko", "fr", "es", "de", "ru")
NODES = "nodeDefs.json"

Texts = dict[tuple[str, ...], str]


def node_definitions(object_info: dict[str, Any]) -> dict[str, Any]:
    """The English texts of nodes, as ComfyUI's frontend 1.47 looks translations up.

    Args:
        object_info: of every node, as the server's /object_info returns it.
    """
    return {node: _definition(object_info[node]) for node in sorted(object_info)}


def _definition(info: dict[str, Any]) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for group in ("required", "optional"):
        for name, (_, *options) in info["input"].get(group, {}).items():
            tooltip = options[0].get("tooltip", "") if options else ""
            inputs[name] = {"name": name, "tooltip": tooltip}
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": {str(i): {"name": name, "tooltip": t} for i, (name, t) in enumerate(outputs)},
    }


def texts(
    tree: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in nested dictionaries, with the keys that lead to it."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from texts(value, (*path, key))
        else:
            yield (*path, key), value


def updated(old: Texts, new: Texts, translated: Texts) -> Texts:
    """Translations for new English texts, as far as they are known from the old ones.

    A text keeps its own translation while its English is the same; else it takes that of another
    text that had the same English in the same place of a node ("steps" of any input's name).
    """
    known = {(english, path[-1]): translated.get(path) for path, english in old.items()}
    found = {
        path: translated.get(path) if old.get(path) == english else known.get((english, path[-1]))
        for path, english in new.items()
    }
    return {path: text for path, text in found.items() if text}


def nested(flat: Texts) -> dict[str, Any]:
    """The nested dictionaries of texts."""
    tree: dict[str, Any] = {}
    for path, text in flat.items():
        place = tree
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = text
    return tree


def read(language: str, name: str = NODES) -> dict[str, Any]:
    """A file of a language; empty if there is none."""
    file = LOCALES / language / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write(language: str, tree: dict[str, Any]) -> None:
    """Write a language's texts of nodes."""
    file = LOCALES / language / NODES
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")


def main() -> None:
    """Write English anew; keep, reuse or remove translations; print what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", required=True, help="ComfyUI's source folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base, ComfyServer(options.comfyui, base) as server:
        info = server.object_info()
        tree = node_definitions({node: info[node] for node in server.pack_nodes()})
    old, new = dict(texts(read(ENGLISH))), dict(texts(tree))
    write(ENGLISH, tree)
    for language in LANGUAGES:
        translated = updated(old, new, dict(texts(read(language))))
        write(language, nested(translated))
        for path in new:
            if path not in translated:
                print(f"{language}: {'.'.join(path)}: {new[path]}")


if __name__ == "__main__":
    main()
