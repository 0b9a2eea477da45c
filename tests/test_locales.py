"""Laws of locales/: every language has every text of the nodes, as the frontend can show it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from scripts import locales
from scripts.locales import ENGLISH, LANGUAGES, LOCALES, node_definitions, read, texts, updated

from .source_code import ROOT

EVERY = (ENGLISH, *LANGUAGES)
COMMAND = "run scripts/locales.py, then translate what it lists"


def test_every_folder_is_a_language_the_script_knows() -> None:
    assert {path.name for path in LOCALES.iterdir()} == set(EVERY)


def test_english_is_what_the_schemas_say(pack_nodes: dict[str, Any]) -> None:
    info = {node: schema.GET_NODE_INFO_V1() for node, schema in pack_nodes.items()}
    # as the server sends it
    new = dict(texts(node_definitions(json.loads(json.dumps(info, default=str)))))
    old = dict(texts(read(ENGLISH)))
    changed = {".".join(path) for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
    assert not changed, COMMAND


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_the_keys_of_english(language: str) -> None:
    english, found = (dict(texts(read(name))) for name in (ENGLISH, language))
    missing = [".".join(path) for path in english if path not in found]
    unknown = [".".join(path) for path in found if path not in english]
    assert not missing and not unknown, f"missing {missing}, unknown {unknown}: {COMMAND}"


@pytest.mark.parametrize("language", EVERY)
def test_texts_are_not_empty_and_have_no_character_of_the_frontends_message_syntax(
    language: str,
) -> None:
    """vue-i18n compiles messages: braces, @ and | would be read as its own syntax."""
    for path, text in texts(read(language)):
        where = f"{language}: {'.'.join(path)}"
        assert text.strip() == text and text, where
        assert not re.search(r"[{}@|]", text), where


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_a_user_types_is_not_translated(language: str) -> None:
    """Examples in quotes, names of files and of other packs' nodes stay as they are."""
    english, found = (dict(texts(read(name))) for name in (ENGLISH, language))
    kept = r"(?<!\w)'[a-z0-9 +]+'|models/ld3|pseudo-huber|lpips-\.\.\."
    kept += r"|EasyCache|dpmpp_2m|SIGMAS|CFG\+\+"
    for path, text in english.items():
        for word in re.findall(kept, text):
            assert word in found[path], f"{language}: {'.'.join(path)}: {word}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_every_text_of_the_menus_and_messages_in_the_browser(language: str) -> None:
    """English is in the script itself, as the key of the translations."""
    script = (ROOT / "web" / "ld3.js").read_text(encoding="utf-8")
    said = set(re.findall(r'\bsay\("([^"]+)"', script))
    said |= set(re.findall(r'^ +"([^"]+)": async', script, re.MULTILINE))  # of the menu
    assert len(said) > 15
    found = read(language, "main.json")["ld3"]
    missing, unknown = said - found.keys(), found.keys() - said
    assert not missing and not unknown, f"missing {missing}, unknown {unknown}"
    for text, translation in found.items():
        assert translation and ("{name}" in text) == ("{name}" in translation), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_tooltips_are_translated(language: str) -> None:
    english, found = (dict(texts(read(name))) for name in (ENGLISH, language))
    same = [path for path, text in english.items() if " " in text and found[path] == text]
    # names that are the same in both
    assert all(path[-1] in ("display_name", "name") for path in same), same


def test_a_changed_text_loses_its_translation_and_an_equal_one_is_used_again() -> None:
    old = {("A", "steps"): "Steps.", ("A", "cfg"): "Guidance."}
    new = {("A", "steps"): "Number of steps.", ("A", "cfg"): "Guidance.", ("B", "cfg"): "Guidance."}
    translated = {("A", "steps"): "Schritte.", ("A", "cfg"): "Guidance-Wert."}
    assert updated(old, new, translated) == {
        ("A", "cfg"): "Guidance-Wert.",
        ("B", "cfg"): "Guidance-Wert.",
    }
    tree = {"A": {"inputs": {"cfg": {"name": "x"}}}}
    assert locales.nested(dict(texts(tree))) == tree
