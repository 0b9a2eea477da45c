"""The rows of the benchmark `ablation` as text."""

from __future__ import annotations

from typing import Any


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean over seeds of each setting, problem by problem; LPIPS in separate lines."""
    lines = []
    for measure in ("heldout_error", "heldout_lpips"):
        means: dict[tuple[Any, ...], list[float]] = {}
        for r in rows:
            group = (r["ablation"], r["model"], r["sampler"], r["steps"], f"cfg {r['cfg']:g}")
            if r[measure] is not None:
                means.setdefault((*group, r["setting"]), []).append(r[measure])
        for group in dict.fromkeys(key[:-1] for key in means):
            values = [
                f"{k[-1]}: {sum(v) / len(v):.4g}" for k, v in means.items() if k[:-1] == group
            ]
            lines.append(f"{measure}: {' '.join(map(str, group))}   {', '.join(values)}")
    return "\n".join(lines)
