"""Conclusions from the rows of the benchmark `theory`."""

from __future__ import annotations

from typing import Any

from benchmarks.methods import ours

from .run import KL


def summary(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, and how often the bound holds."""
    lines = []
    last = max((r["update"] for r in rows if r["method"] == "gradient" and r["update"]), default=0)
    ends = {"gauss-newton": ours.ITERATIONS, "gradient": last}
    means: dict[tuple[Any, ...], list[float]] = {}
    for r in rows:
        if r["update"] is None or r["update"] == ends[r["method"]]:
            group = (r["experiment"], r["model"], r["sampler"], r["steps"], r["quantity"])
            label = r["method"] if r["radius"] is None else f"{r['method']} r={r['radius']:g}"
            means.setdefault((*group, label), []).append(r["value"])
    for group in dict.fromkeys(key[:-1] for key in means):
        values = [f"{k[-1]} {sum(v) / len(v):.4f}" for k, v in means.items() if k[:-1] == group]
        lines.append(f"{' '.join(map(str, group))}: {', '.join(values)}")
    return "\n".join([*lines, *_bound_check(rows)])


def _bound_check(rows: list[dict[str, Any]]) -> list[str]:
    by_run: dict[tuple[Any, ...], dict[str, float]] = {}
    for r in rows:
        if r["experiment"] == "kl":
            key = (r["model"], r["method"], r["radius"], r["seed"])
            by_run.setdefault(key, {})[r["quantity"]] = r["value"]
    complete = [run for run in by_run.values() if len(run) == len(KL)]
    if not complete:
        return []
    at_zero_loss = sum(run["kl"] <= run["zero_loss_bound"] for run in complete)
    at_radius = sum(run["kl"] <= run["bound"] for run in complete)
    return [
        f"Theorem 1: KL below the bound in {at_zero_loss} of {len(complete)} runs at the radius of "
        f"zero soft loss, in {at_radius} at the radius used in learning"
    ]
