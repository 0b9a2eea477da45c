"""Text of users and files as it may be shown: short, on one line, and never markup."""

from __future__ import annotations

import unicodedata

MOST_CHARACTERS = 480
JOINERS = "\u200c\u200d"  # invisible, and part of words in Persian, Hindi and others
MARKUP = str.maketrans({"<": "(", ">": ")", "&": "+", "`": "'"})


def shown(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text without markup and invisible characters, shortened in its middle.

    The browser shows what nodes say as HTML.
    """
    lines = text.translate(MARKUP).split("\n")
    return shortened("\n".join("".join(map(_visible, line)) for line in lines), most)


def _visible(character: str) -> str:
    """The character, a space for any space, and ? for what a repr would escape.

    That are controls, reversed writing, halves of characters, and characters that none is yet.
    """
    if character.isprintable() or character in JOINERS:
        return character
    return " " if character in "\t\r" or unicodedata.category(character) == "Zs" else "?"


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, or its beginning and end."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 4]} .. {text[-end:]}"
