"""Benchmarks: `python -m benchmarks NAME --json FILE`; each prints a table and saves its rows."""
