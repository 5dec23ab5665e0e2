"""Loss on the way, against bytes and against time on a modelled link, as a picture (PNG)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from shoal.bench.learn import LearnRow, Point
from shoal.errors import ConfigurationError


def check_drawable(path: Path | None) -> None:
    """Raises ConfigurationError, before anything is measured, when `path` cannot be drawn."""
    if path is None:
        return
    if path.suffix != ".png":
        raise ConfigurationError(f"--plot {path}: the picture is a PNG; give a name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"cannot write --plot {path}: the folder {path.absolute().parent} does not exist")
    if find_spec("matplotlib") is None:
        raise ConfigurationError("--plot draws with matplotlib, which is not installed: pip install 'shoal[plot]'")


def modelled_seconds(point: Point, link_mbits: float) -> float:
    """When this point is reached if all bytes pass one link, the server's: what was computed, and then every byte at
    the link's rate. Nothing overlaps, so methods that hide their bytes do better than this."""
    return point.seconds + point.bytes * 8 / (link_mbits * 1e6)


def draw(rows: Sequence[LearnRow], path: Path, link_mbits: float) -> None:
    """Each method's first run: val_loss over part of the validation split, at the points where it was looked at."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (by_bytes, by_time) = pyplot.subplots(1, 2, figsize=(14, 6), sharey=True)
    for number, row in enumerate(rows):
        points = row.runs[0].points
        losses = [point.val_loss for point in points]
        style = {"label": row.name, "color": pyplot.colormaps["tab20"](number % 20), "marker": ".", "linewidth": 1}
        style["linestyle"] = "-" if number < 20 else "--"
        by_bytes.plot([point.bytes / 1e6 for point in points], losses, **style)
        by_time.plot([modelled_seconds(point, link_mbits) for point in points], losses, **style)
    by_bytes.set(xscale="log", xlabel="MB sent and received by all workers", ylabel="validation loss, nats a character")
    by_time.set(xlabel=f"seconds: computed, and bytes over one link of {link_mbits:g} Mbit/s")
    by_time.legend(fontsize="small")
    for axes in (by_bytes, by_time):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
