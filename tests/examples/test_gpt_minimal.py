"""The training loop of the README, spread over two workers: it learns."""

from __future__ import annotations

import re
from pathlib import Path

from shoal.launch.local import launch

SCRIPT = str(Path(__file__).parents[2] / "examples" / "gpt_minimal.py")


def test_the_loss_falls() -> None:
    said: list[str] = []
    assert launch((SCRIPT, "100"), 2, 1, on_line=lambda source, text: said.append(f"{source}: {text}")) == 0
    losses = [float(value) for value in re.findall(r"worker 0: step \d+: loss ([\d.]+)", "\n".join(said))]
    assert len(losses) == 2, said
    assert losses[1] < losses[0] < 4.6 and losses[1] < 3.3  # ln 98 = 4.6 is knowing nothing
