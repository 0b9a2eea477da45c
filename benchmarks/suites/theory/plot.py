"""The figure of the benchmark `theory`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
COLOURS = ("tab:blue", "tab:orange", "tab:red", "tab:green")
SHORT = {
    "scheduler:best": "best of nine",
    "gauss-newton": "Gauss-Newton",
    "gauss-newton+decoupled": "Gauss-Newton,\ndecoupled",
    "gauss-newton+solver+mix": "Gauss-Newton,\nfull solver",
    "gradient+decoupled": "gradient,\ndecoupled",
}


def plot(rows: Rows) -> Figure:
    """Four panels: convergence, KL and its bound, loss by update, heavy tails."""
    figure = Figure(figsize=(12, 9), dpi=100, layout="constrained")
    axes = figure.subplots(2, 2).flatten()
    _convergence(axes[0], chosen(rows, experiment="convergence", sampler="dpmpp_2m"))
    _bound(axes[1], chosen(rows, experiment="kl", method="gradient"))
    _loss(axes[2], chosen(rows, experiment="loss"))
    _stress(axes[3], chosen(rows, experiment="heavy-tails", quantity="heldout_error"))
    for axis in axes:
        axis.grid(alpha=0.25)
    return figure


def chosen(rows: Rows, **values: Any) -> Rows:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def by(rows: Rows, name: str) -> dict[Any, tuple[float, float, float]]:
    """Value of a column -> mean, minimum and maximum over seeds, in order."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row["value"])
    return {key: (sum(v) / len(v), min(v), max(v)) for key, v in sorted(found.items())}


def _curve(axis: Any, points: dict[Any, tuple[float, float, float]], **style: Any) -> None:
    mean, lowest, highest = zip(*points.values(), strict=True)
    axis.plot(list(points), mean, **style)
    axis.fill_between(list(points), lowest, highest, color=style.get("color"), alpha=0.12)


def _optimizers(rows: Rows) -> list[tuple[str, Rows, str]]:
    """Label, rows and colour of each optimizer and radius."""
    keys = list(dict.fromkeys((row["method"], row["radius"]) for row in rows))
    found = []
    for (method, radius), colour in zip(keys, COLOURS, strict=False):
        label = "Gauss-Newton"
        if method == "gradient":
            label = f"gradient, soft (r = {radius:g})" if radius else "gradient, hard"
        found.append((label, chosen(rows, method=method, radius=radius), colour))
    return found


def _convergence(axis: Any, rows: Rows) -> None:
    for label, part, colour in _optimizers(rows):
        _curve(axis, by(part, "model_calls"), label=label, color=colour)
    axis.set(
        xlabel="model calls",
        ylabel="test error",
        title="Convergence on a mixture in 1-D (dpmpp_2m, 4 steps)",
    )
    axis.set_xscale("symlog", linthresh=80)
    axis.legend(fontsize=9, frameon=False)


def _bound(axis: Any, rows: Rows) -> None:
    lines = {"bound": ("--", "Theorem 1 at r"), "kl": ("-", "KL"), "soft_loss": (":", "soft loss")}
    for model, colour in (("mixture-1d", "tab:blue"), ("mixture-2d", "tab:red")):
        part = chosen(rows, model=model)
        for quantity, (line, _) in lines.items():
            points = by(chosen(part, quantity=quantity), "radius")
            _curve(axis, points, ls=line, color=colour, marker=".")
        axis.plot([], [], color=colour, label=model)
    for line, label in lines.values():
        axis.plot([], [], ls=line, color="k", label=label)
    axis.set_xscale("symlog", linthresh=0.01, linscale=0.5)
    axis.set_yscale("symlog", linthresh=1e-3, linscale=0.3)
    axis.set_ylim(0, 20)  # room for the legend
    axis.set(xlabel="radius r in learning", title="KL(teacher || student), its bound, and the loss")
    axis.legend(fontsize=9, frameon=False, loc="upper left", ncols=2)


def _loss(axis: Any, rows: Rows) -> None:
    for label, part, colour in _optimizers(rows):
        for quantity, line in (("heldout_error", "-"), ("training_error", "--")):
            points = by(chosen(part, quantity=quantity), "update")
            name = label if line == "-" else None
            axis.plot(
                list(points), [p[0] for p in points.values()], ls=line, color=colour, label=name
            )
    axis.plot([], [], "k-", label="test noises")
    axis.plot([], [], "k--", label="training noises, perturbed")
    axis.set(
        xlabel="update",
        ylabel="error (RMSE to the teacher)",
        title="Loss by update on digits (dpmpp_2m, 4 steps)",
        ylim=(0, None),
    )
    axis.legend(fontsize=9, frameon=False)


def _stress(axis: Any, rows: Rows) -> None:
    runs = list(dict.fromkeys((row["sampler"], row["steps"]) for row in rows))
    width = 0.8 / len(SHORT)
    for i, (method, label) in enumerate(SHORT.items()):
        for j, (sampler, steps) in enumerate(runs):
            part = chosen(rows, sampler=sampler, steps=steps)
            ours, best = (
                by(chosen(part, method=name), "method")[name] for name in (method, "scheduler:best")
            )
            mean, lowest, highest = (value / best[0] for value in ours)
            axis.bar(
                j + (i - (len(SHORT) - 1) / 2) * width,
                mean,
                width,
                yerr=[[mean - lowest], [highest - mean]],
                capsize=3,
                color=("0.6", *COLOURS)[i],
                label=None if j else label.replace("\n", " "),
            )
    axis.set_xticks(range(len(runs)), [f"{sampler}\n{steps} steps" for sampler, steps in runs])
    axis.axhline(1, color="0.3", lw=1)
    axis.set(ylabel="test error / best of nine", title="24 modes with Student t tails")
    axis.margins(y=0.35)
    axis.legend(fontsize=9, frameon=False, loc="upper center", ncols=2)
