"""The benchmarks that can be run, one module or package per name.

Each has `TITLE`, `KEYS` (the columns that identify a row), `COLUMNS` (name -> printed width),
`cells()`, `row(**cell)`, `summary(rows)` and, where there is a figure, `plot(rows)`.
"""
