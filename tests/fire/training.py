"""What burns in the fire tests: the recipe's GPT, tiny, on generated text, until the test says that it is enough.

python training.py FOLDER MODEL PAUSE_SECONDS

    counting:POLICY  samples by lease, rule SGD. Beside the GPT lies a parameter with one element a sample, whose
                     gradient is -1 for each sample of a batch, at rate 1: it counts how often each was trained on
    bits             AdamW and Sync, batches by (clock, rank): jobs with the same contributors end with the same bits

Every commit that a worker is told of stands in notes-RANK.jsonl before it goes on; see notes.py for the lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

import shoal
from shoal.client import ParameterServer
from shoal.errors import FencedError, SnapshotError
from shoal.policy import Policy
from shoal.recipes.gpt.crops import Crops
from shoal.recipes.gpt.model import GPT, Shape

SIZE = 600  # samples
BATCH = 4
TEXT_TOKENS = 5_000
SHAPE = Shape(vocab_size=32, block_size=16, n_layer=1, n_head=2, n_embd=32)
POLICIES: dict[str, Policy] = {"sync": shoal.Sync(), "bounded": shoal.Bounded(2), "async": shoal.Async()}

Item = tuple[int, Tensor, Tensor]
Batch = tuple[Tensor, Tensor, Tensor]  # numbers of samples, x, y


class Numbered(Dataset[Item]):
    """Crops that say which they are."""

    def __init__(self) -> None:
        text = np.random.default_rng(0).integers(0, SHAPE.vocab_size, TEXT_TOKENS)
        self._crops = Crops(text, SHAPE.block_size, SIZE, seed=0)

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Item:
        return (index, *self._crops[index])

    def batch(self, numbers: Sequence[int]) -> Batch:
        return (torch.tensor(numbers), *self._crops.batch(np.asarray(numbers)))


class Training:
    """One worker's part."""

    def __init__(self, ps: ParameterServer, folder: Path, model: str, pause: float) -> None:
        self.ps, self.folder, self.pause = ps, folder, pause
        self.data, self.gpt = Numbered(), GPT(SHAPE)
        self.seen = torch.nn.Parameter(torch.zeros(SIZE))
        self.counts = model != "bits"
        self.passes = 0
        self.opt = self.optimizer(model)

    def optimizer(self, model: str) -> torch.optim.Optimizer:
        if not self.counts:
            return self.ps.optimizer(self.gpt, shoal.AdamW(lr=1e-3, clip_norm=1.0), sync=shoal.Sync())
        named = [(f"gpt.{name}", parameter) for name, parameter in self.gpt.named_parameters()]
        groups = [{"params": named, "lr": 1e-3}, {"params": [("seen", self.seen)], "lr": 1.0}]
        sync = POLICIES[model.partition(":")[2]]
        return self.ps.optimizer(groups, shoal.SGD(lr=1.0), sync=sync, reduction="sum")

    def batches(self) -> Iterator[Batch]:
        """Until the test has written the file `enough`: the clock to stop at, or anything for the end of this pass."""
        enough = self.folder / "enough"
        while not self.counts:
            if enough.exists() and self.ps.worker.clock > int(enough.read_text()):
                return
            chance = np.random.default_rng((self.ps.worker.clock, self.ps.rank))
            yield self.data.batch(chance.integers(0, SIZE, BATCH).tolist())
        while not enough.exists():
            yield from self.ps.loader(self.data, batch_size=BATCH)
            self.passes += 1

    def run(self) -> None:
        with (self.folder / f"notes-{self.ps.rank}.jsonl").open("a", buffering=1) as notes:
            for numbers, x, y in self.batches():
                loss = self.gpt(x, y)
                if self.counts:
                    loss = loss - self.seen[numbers].sum()
                loss.backward()
                clock = self.ps.worker.clock
                self.opt.step()
                self.opt.zero_grad()
                samples = numbers.tolist() if self.counts else []
                facts = [clock, self.ps.worker.version, self.checksum(), self.passes, samples]
                note = [time.monotonic(), os.getpid(), *facts]
                notes.write(json.dumps(note) + "\n")
                self.take_snapshot()
                time.sleep(self.pause)
        self.write_result()

    def checksum(self) -> int:
        """Of all parameters, as they are now."""
        found = 0
        for parameter in (*self.gpt.parameters(), self.seen):
            found = zlib.crc32(parameter.detach().numpy(), found)
        return found

    def take_snapshot(self) -> None:
        """If the test asks for one."""
        asked = self.folder / "snapshot"
        if self.ps.rank != 0 or not asked.exists():
            return
        try:
            answer = {"version": self.ps.snapshot(asked.read_text()), "error": ""}
        except SnapshotError as error:
            answer = {"version": 0, "error": str(error)}
        draft = self.folder / "answer.new"
        draft.write_text(json.dumps(answer))
        asked.unlink()
        draft.rename(self.folder / "answer")

    def write_result(self) -> None:
        values = b"".join(parameter.detach().numpy().tobytes() for parameter in self.gpt.parameters())
        counted = self.seen.detach().numpy()
        result = {
            "version": self.ps.worker.version,
            "passes": self.passes,
            "digest": hashlib.sha256(values).hexdigest(),
            "least": float(counted.min()),
            "most": float(counted.max()),
        }
        (self.folder / f"result-{self.ps.rank}.json").write_text(json.dumps(result))


def main() -> None:
    folder, model, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    links = os.environ.get("FIRE_LINKS", "").split()  # by rank: where this worker finds the coordinator
    try:
        with shoal.connect(links[int(os.environ["SHOAL_RANK"])] if links else None) as ps:
            Training(ps, folder, model, pause).run()
    except FencedError as error:
        print(f"fenced: {error}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)  # what the launcher starts again


if __name__ == "__main__":
    main()
