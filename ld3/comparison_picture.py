"""A grid of sampled pictures with captions: what each column is, its cost and its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .shown_text import shown

LEAST_CELL, MOST_CELL = 160, 512  # pixels: smaller pictures are enlarged, larger ones reduced
MARGIN, HEADER, LINES = 8, 76, (20, 42, 62)
LARGEST_TEXT, SMALLEST_TEXT, ROW_TEXT = 18, 9, 15
THUMBNAIL_LINE = 22  # pixels of a thumbnail's name
INK, PALE, PAPER, LEARNED = "#16181b", "#5a6068", "#ffffff", "#b3243a"


@dataclass(frozen=True, eq=False)
class Column:
    """One way to sample all rows.

    Attributes:
        name: of sampler and scheduler, or of the schedule.
        steps, model_calls: of one picture.
        error: mean RMSE to the reference in the latents; None for the reference itself.
        images: (rows, height, width, 3), from 0 to 1.
        learned: whether it is a learned schedule, which is marked.
    """

    name: str
    steps: int
    model_calls: int
    error: float | None
    images: np.ndarray
    learned: bool = False

    @property
    def cost(self) -> str:
        """Steps and calls; only steps where each is one call."""
        steps = f"{self.steps} steps"
        return steps if self.steps == self.model_calls else f"{steps}, {self.model_calls} calls"

    @property
    def nearness(self) -> str:
        """The error in words."""
        return "the reference" if self.error is None else f"error {self.error:.3f}"


def comparison_picture(columns: list[Column], rows: list[str]) -> np.ndarray:
    """The grid with captions, as (H, W, 3) uint8.

    Args:
        columns: at least one, with as many images as there are rows.
        rows: names of the rows, "" for none.
    """
    cells = [[_cell(image) for image in column.images] for column in columns]
    width, height = cells[0][0].size
    left = MARGIN + max((int(_font(ROW_TEXT).getlength(shown(row))) for row in rows), default=0)
    left += MARGIN if left > MARGIN else 0
    size = left + len(columns) * (width + MARGIN), HEADER + len(rows) * (height + MARGIN)
    picture = Image.new("RGB", size, PAPER)
    drawing = ImageDraw.Draw(picture)
    for i, row in enumerate(rows):
        middle = HEADER + i * (height + MARGIN) + height // 2
        drawing.text((MARGIN, middle), shown(row), INK, _font(ROW_TEXT), anchor="lm")
    for k, column in enumerate(columns):
        x = left + k * (width + MARGIN)
        texts = (shown(column.name), column.cost, column.nearness)
        for y, text in zip(LINES, texts, strict=True):
            colour = LEARNED if column.learned else INK if y == LINES[0] else PALE
            font = _fitting(text, width, LARGEST_TEXT if y == LINES[0] else ROW_TEXT)
            drawing.text((x + width // 2, y), text, colour, font, anchor="mm")
        for i, cell in enumerate(cells[k]):
            picture.paste(cell, (x, HEADER + i * (height + MARGIN)))
    return np.array(picture)


def with_thumbnails(picture: np.ndarray, thumbnails: Mapping[str, Image.Image]) -> np.ndarray:
    """A picture (H, W, 3) uint8 with small pictures by name in a column on its right."""
    height = (picture.shape[0] - MARGIN) // len(thumbnails) - THUMBNAIL_LINE - MARGIN
    column = Image.new("RGB", (height + 2 * MARGIN, picture.shape[0]), PAPER)
    drawing, y = ImageDraw.Draw(column), MARGIN
    for name, thumbnail in thumbnails.items():
        middle = column.width // 2, y + THUMBNAIL_LINE // 2
        drawing.text(middle, shown(name), INK, _font(ROW_TEXT), anchor="mm")
        small = ImageOps.contain(thumbnail, (height, height), Image.Resampling.NEAREST)
        column.paste(small, ((column.width - small.width) // 2, y + THUMBNAIL_LINE))
        y += THUMBNAIL_LINE + height + MARGIN
    return np.concatenate([picture, np.array(column)], axis=1)


def comparison_table(columns: list[Column]) -> str:
    """The same numbers as text, a line for each column."""
    width = max(len(column.name) for column in columns)
    lines = [f"{column.name:<{width}}  {column.cost}, {column.nearness}" for column in columns]
    return "\n".join(lines)


def _cell(image: np.ndarray) -> Image.Image:
    found = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
    longest = max(found.size)
    if longest < LEAST_CELL:  # by a whole number, so that every pixel stays a square
        factor = -(-LEAST_CELL // longest)
        size = found.width * factor, found.height * factor
        return found.resize(size, Image.Resampling.NEAREST)
    if longest > MOST_CELL:
        size = [round(side * MOST_CELL / longest) for side in found.size]
        return found.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    return found


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitting(text: str, width: int, largest: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font in which a text is not wider than its column."""
    for size in range(largest, SMALLEST_TEXT, -1):
        font = _font(size)
        if font.getlength(text) <= width:
            return font
    return _font(SMALLEST_TEXT)
