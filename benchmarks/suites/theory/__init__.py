"""First experiments on exact problems."""

from .plot import plot
from .run import COLUMNS, KEYS, TITLE, cells, row
from .summary import summary

__all__ = ["COLUMNS", "KEYS", "TITLE", "cells", "plot", "row", "summary"]
