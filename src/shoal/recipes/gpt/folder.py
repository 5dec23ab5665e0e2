"""What a run leaves on disk, and where: one folder, readable without Shoal.

settings.json      the options of the run; written first, so its time stamp is the start of the run
tokenizer.json     the tokeniser that was made from the text
snapshot-<iters>/  parameters and optimizer state on the servers: what `--resume` goes on from
model.safetensors  the trained model as an ordinary torch state dict: what `shoal sample` reads
sample.txt         text that the trained model wrote
result.json        losses, iterations, tokens, seconds, and the path of the last snapshot
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from shoal.errors import ConfigurationError, SnapshotError
from shoal.recipes.gpt.settings import Settings
from shoal.recipes.gpt.text import Tokenizer, load_tokenizer
from shoal.storage.snapshot import MANIFEST


@dataclass(frozen=True)
class Result:
    """The outcome of a run. Losses in nats per token; seconds from the start of the run to its last update."""

    val_loss: float
    train_loss: float
    iterations: int
    tokens: int
    seconds: float
    snapshot: str


@dataclass(frozen=True)
class Folder:
    """The folder of one run."""

    path: Path

    @classmethod
    def fresh(cls, preferred: Path) -> Folder:
        """`preferred`, or the first of preferred-2, preferred-3, ... that does not hold a run yet."""
        path, number = preferred, 1
        while (path / _SETTINGS).exists():
            number += 1
            path = preferred.with_name(f"{preferred.name}-{number}")
        return cls(path)

    @classmethod
    def of(cls, path: Path) -> Folder:
        """The run that `path`, a run's folder or a snapshot in it, belongs to (SnapshotError if none)."""
        for candidate in (path, path.resolve().parent):
            if (candidate / _SETTINGS).is_file():
                return cls(candidate)
        raise SnapshotError(
            f"{path} is not a GPT run, nor a snapshot in one: no {_SETTINGS} there; "
            "give a folder that `shoal train gpt --out` wrote"
        )

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def sample(self) -> Path:
        return self.path / "sample.txt"

    def snapshot(self, iterations: int) -> Path:
        return self.path / f"{_SNAPSHOT}{iterations:06d}"

    def last_snapshot(self) -> tuple[Path, int]:
        """The complete snapshot with the most iterations, and how many those are (SnapshotError if there is none)."""
        complete = [item for item in self.path.glob(f"{_SNAPSHOT}*") if (item / MANIFEST).is_file()]
        numbered = [(iterations_of(item), item) for item in complete]
        if not numbered:
            raise SnapshotError(f"{self.path} holds no snapshot: the run ended before its first; start it anew")
        iterations, path = max(numbered)
        return path, iterations

    def begin(self, settings: Settings, tokenizer: Tokenizer) -> None:
        """Start a run here: the outcome of an earlier one goes, its snapshots stay."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for outcome in (self._result, self.model, self.sample):
                outcome.unlink(missing_ok=True)
            (self.path / _TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
            (self.path / _SETTINGS).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"cannot write the run's folder {self.path}: {error.strerror}") from None

    def settings(self) -> Settings:
        return _read(self.path / _SETTINGS, Settings)

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer((self.path / _TOKENIZER).read_text(encoding="utf-8"))

    def seconds(self) -> float:
        """How long ago the run began."""
        return time.time() - (self.path / _SETTINGS).stat().st_mtime

    def write_result(self, result: Result) -> None:
        self._result.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")

    def result(self) -> Result | None:
        """The outcome, or None while there is none."""
        return _read(self._result, Result) if self._result.exists() else None

    @property
    def _result(self) -> Path:
        return self.path / "result.json"


def iterations_of(snapshot: Path) -> int:
    """How many iterations a snapshot has seen, by its name (SnapshotError if the name does not say)."""
    digits = snapshot.name.removeprefix(_SNAPSHOT)
    if not (snapshot.name.startswith(_SNAPSHOT) and digits.isdecimal()):
        raise SnapshotError(f"{snapshot} is not named {_SNAPSHOT}<iterations>, so it is no snapshot of a GPT run")
    return int(digits)


_SETTINGS = "settings.json"
_TOKENIZER = "tokenizer.json"
_SNAPSHOT = "snapshot-"


Document = TypeVar("Document")


def _read(path: Path, kind: type[Document]) -> Document:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"{path} is not what Shoal wrote: {error}; restore it, or start the run anew") from None
