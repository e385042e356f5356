"""Draw what was measured: python -m benchmarks.plot [RESULTS]; reads the groups' JSON, writes SVG and PNG beside it.

    latency.svg      p50 of 1, 100 and 1,000 entities by peer, embedded and over TCP
    percentiles.svg  the tail of the same reads

Transparent, with mid-grey text: readable on a light page and on a dark one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from .programs import HERE

GREY = "#7d8590"
# Label, group and peer as the results name them, colour. Blues are ours.
PEERS = (
    ("fastfeat, embedded", "embedded", "fastfeat", "#1f6feb"),
    ("fastfeat, client over TCP", "client", "fastfeat", "#54aeff"),
    ("Redis, packed blobs by hand (GET, MGET)", "client", "redis_packed", "#f0883e"),
    ("Redis, HMGET of 50 fields", "client", "redis_hmget", "#b35900"),
)
BATCHES = (1, 100, 1_000)
STYLE: Any = {
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastfeat",  # the same numbers draw the same file
}

GROUPS = ("embedded", "client")  # that are drawn


def read_latencies(folder: Path) -> dict[str, dict[str, float]]:
    """ "group.batch.peer" -> percentiles in us. Raises FileNotFoundError where a group is not measured yet."""
    latencies: dict[str, dict[str, float]] = {}
    for group in GROUPS:
        found = json.loads((folder / f"{group}.json").read_text(encoding="utf-8"))["latencies"]
        latencies |= {name: latency["percentiles_us"] for name, latency in found.items()}
    return latencies


def micros(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def draw_bars(latencies: dict[str, dict[str, float]]) -> Any:
    figure, axes = plt.subplots(1, len(BATCHES), figsize=(10, 3.0))
    for axis, batch in zip(axes, BATCHES, strict=True):
        values = [latencies[f"{group}.{batch}x50.{peer}"]["50"] for _, group, peer, _ in PEERS]
        places = range(len(PEERS), 0, -1)
        axis.barh(places, values, color=[colour for *_, colour in PEERS], height=0.72)
        for place, value in zip(places, values, strict=True):
            axis.annotate(micros(value), (value, place), (4, 0), textcoords="offset points", va="center", color=GREY)
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 3, max(values) * 6)
        axis.set_yticks([])
        axis.set_title(f"{batch:,} {'entity' if batch == 1 else 'entities'} x 50 float64", fontsize=10.5)
        axis.set_xlabel("p50, microseconds (log)")
    figure.legend(legend_handles(), [label for label, *_ in PEERS], ncols=2, loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.19, 1, 1))
    return figure


def draw_percentiles(latencies: dict[str, dict[str, float]]) -> Any:
    figure, axes = plt.subplots(1, len(BATCHES), figsize=(10, 3.4))
    for axis, batch in zip(axes, BATCHES, strict=True):
        for _, group, peer, colour in PEERS:
            points = latencies[f"{group}.{batch}x50.{peer}"]
            percents = [p for p in points if float(p) < 99.95]
            axis.plot([100 / (100 - float(p)) for p in percents], [points[p] for p in percents], color=colour, lw=2)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks([2, 10, 100, 1000], ["50", "90", "99", "99.9"])
        axis.minorticks_off()
        axis.grid(axis="y", color=GREY, alpha=0.25, lw=0.6)
        axis.set_title(f"{batch:,} {'entity' if batch == 1 else 'entities'} x 50 float64", fontsize=10.5)
        axis.set_xlabel("percentile")
    axes[0].set_ylabel("microseconds (log)")
    figure.legend(legend_handles(), [label for label, *_ in PEERS], ncols=2, loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    return figure


def legend_handles() -> list[Any]:
    return [mpl.patches.Patch(color=colour) for *_, colour in PEERS]


def save(figure: Any, folder: Path, name: str) -> None:
    figure.savefig(folder / f"{name}.svg", transparent=True, metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", transparent=True, dpi=144)
    plt.close(figure)


def main(folder: Path) -> None:
    latencies = read_latencies(folder)
    with mpl.rc_context(STYLE):
        save(draw_bars(latencies), folder, "latency")
        save(draw_percentiles(latencies), folder, "percentiles")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE / "results")
