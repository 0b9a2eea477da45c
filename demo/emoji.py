"""Render the single-code-point emoji of a colour font: the training pictures of the demo model."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the one bitmap size, in pixels, that NotoColorEmoji holds
CANVAS = 136  # its widest bitmap
FIRST_EMOJI = 0x203C  # below are digits, keycaps, (c) and (r)


def is_emoji(code_point: int) -> bool:
    """Whether a code point is a picture with a name of its own (no modifier, no flag letter)."""
    if not FIRST_EMOJI <= code_point < 0xE0000:  # from 0xE0000: tags
        return False
    if 0x1F1E6 <= code_point <= 0x1F1FF or 0x1F3FB <= code_point <= 0x1F3FF:
        return False  # regional indicators, skin tones
    character = chr(code_point)
    return unicodedata.category(character) == "So" or (
        unicodedata.category(character) in ("Sm", "Po") and bool(unicodedata.name(character, ""))
    )


def render(character: str, font: ImageFont.FreeTypeFont, size: int) -> np.ndarray:
    """Draw one emoji centred on white.

    Args:
        character: one code point.
        font: the colour font at its bitmap size.
        size: edge length of the result in pixels.

    Returns:
        uint8 array (size, size, 3).
    """
    canvas = Image.new("RGBA", (CANVAS, CANVAS), "white")
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = draw.textbbox((0, 0), character, font=font, embedded_color=True)
    corner = ((CANVAS - right - left) / 2, (CANVAS - bottom - top) / 2)
    draw.text(corner, character, font=font, embedded_color=True)
    return np.asarray(canvas.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


def load_emoji(font_path: Path = FONT, size: int = 32) -> tuple[np.ndarray, list[str]]:
    """Render every single-code-point emoji of a font.

    Args:
        font_path: NotoColorEmoji.ttf.
        size: edge length in pixels.

    Returns:
        images uint8 (emoji, size, size, 3) and their captions: Unicode names in lower case.

    Raises:
        FileNotFoundError: the font is missing.
    """
    if not font_path.is_file():
        raise FileNotFoundError(
            f"no emoji font at {font_path}: install Debian's fonts-noto-color-emoji or pass --font"
        )
    with TTFont(font_path, lazy=True) as tables:
        code_points = [c for c in sorted(tables.getBestCmap()) if is_emoji(c)]
    font = ImageFont.truetype(str(font_path), STRIKE)
    named = [(chr(c), unicodedata.name(chr(c), "").lower()) for c in code_points]
    named = [(character, name) for character, name in named if name]
    images = np.stack([render(character, font, size) for character, _ in named])
    return images, [name for _, name in named]
