"""`shoal bench`: measures Shoal beside what people would use in its place, on this machine.

Every command shows what it does while it runs, prints a table at the end, and with --json FILE writes
the same figures as a list of rows (shoal.bench.rows).
"""

from __future__ import annotations

import typer

from shoal.cli.bench import exchange, fleet, learn, link, overlap, replication, scale, snapshot, straggler

bench_app = typer.Typer(name="bench", no_args_is_help=True, rich_markup_mode=None)
bench_app.command("exchange")(exchange.exchange)
bench_app.command("overlap")(overlap.overlap)
bench_app.command("link")(link.link)
bench_app.command("scale")(scale.scale)
bench_app.command("snapshot")(snapshot.snapshot)
bench_app.command("learn")(learn.learn)
bench_app.command("straggler")(straggler.straggler)
bench_app.command("fleet")(fleet.fleet)
bench_app.command("replication")(replication.replication)


@bench_app.callback()
def _group() -> None:
    """Measure Shoal beside its peers."""
