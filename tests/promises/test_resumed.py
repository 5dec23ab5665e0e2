"""A job that goes on from a snapshot equals, to the bit, the one that was not interrupted, on any number of servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.launch.local import launch

SCRIPT = """
import os, sys
import torch
import shoal

torch.manual_seed(0)
torch.set_num_threads(1)
stop, path = int(sys.argv[1]), sys.argv[2]
data = torch.utils.data.TensorDataset(torch.randn(90, 12, generator=torch.Generator().manual_seed(1)))
with shoal.connect() as ps:
    model = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
    rule = shoal.AdamW(lr=1e-2, clip_norm=1.0)
    opt = ps.optimizer(model, rule, sync=shoal.Sync())
    seen = []
    for epoch in range(3):
        for (x,) in ps.loader(data, batch_size=5):
            model(x).square().mean().backward()
            opt.step()
            opt.zero_grad()
            seen.append(len(x))
            if path and opt.clock == stop + 1 and ps.rank == 0:
                ps.snapshot(path, wait=False)  # leaving waits for it
            if path and opt.clock == stop + 1:
                break
        if path and opt.clock == stop + 1:
            break
    print("samples", sum(seen))
    print("bits", b"".join(p.detach().numpy().tobytes() for p in model.parameters()).hex())
"""


def run(folder: Path, servers: int, stop: int = 0, path: str = "", resume: str | None = None) -> dict[str, list[str]]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    lines: list[tuple[str, str]] = []
    status = launch((str(script), str(stop), path), 2, servers, resume=resume, on_line=lambda *line: lines.append(line))
    assert status == 0, lines
    found: dict[str, list[str]] = {}
    for _, text in lines:
        word, _, rest = text.partition(" ")
        found.setdefault(word, []).append(rest)
    return found


# In the middle of a data epoch, and at the end of one; by a path and by a URL.
@pytest.mark.parametrize(("stop", "scheme"), [(13, "file://"), pytest.param(9, "", marks=pytest.mark.slow)])
def test_a_resumed_job_equals_one_that_was_not_interrupted(stop: int, scheme: str, tmp_path: Path) -> None:
    whole = run(tmp_path, 2)
    snapshot = f"{scheme}{tmp_path}/snapshot"
    first = run(tmp_path, 2, stop, snapshot)
    assert sum(map(int, first["samples"])) == 2 * 5 * stop
    for servers in (1, 3):
        rest = run(tmp_path, servers, resume=snapshot)
        assert sum(map(int, rest["samples"])) == 3 * 90 - 2 * 5 * stop, "each sample counts once in both runs together"
        assert set(rest["bits"]) == set(whole["bits"]), f"on {servers} servers"
