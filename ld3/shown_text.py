"""Text of users and files as it may be shown: short, on one line, and never markup."""

from __future__ import annotations

import unicodedata

MOST_CHARACTERS = 480
MARKUP = str.maketrans({"<": "(", ">": ")", "&": "+", "`": "'"})
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, reversed writing, halves of characters


def shown(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text without markup and invisible characters, shortened in its middle.

    The browser shows what nodes say as HTML.
    """
    lines = text.translate(MARKUP).split("\n")
    visible = ["".join("?" if unicodedata.category(c) in HIDDEN else c for c in x) for x in lines]
    return shortened("\n".join(visible), most)


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, or its beginning and end."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 4]} .. {text[-end:]}"
