"""Learned solvers: what each extra of a sampler contributes."""

from .plot import plot
from .run import COLUMNS, KEYS, TITLE, cells, row
from .summary import summary

__all__ = ["COLUMNS", "KEYS", "TITLE", "cells", "plot", "row", "summary"]
