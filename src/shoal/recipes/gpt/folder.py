"""What a run leaves on disk, and where: one folder, readable without Shoal.

An outcome stays until there is a new one: a run that does not come to its end takes nothing away.

settings.json      the options of the run; written first, so its time stamp is the start of the run
tokenizer.json     the tokeniser that was made from the text
snapshot-<iters>/  parameters and optimizer state on the servers: what `--resume` goes on from (unless --snapshots says
                   another place)
model.safetensors  the trained model as an ordinary torch state dict: what `shoal sample` reads
sample.txt         text that the trained model wrote
*.new              the next of these, until it is complete
result.json        losses, iterations, tokens, seconds, and the path of the last snapshot
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from shoal.errors import ConfigurationError, SnapshotError
from shoal.recipes.gpt.settings import Settings
from shoal.recipes.gpt.text import Tokenizer, load_tokenizer
from shoal.storage.manifest import MANIFEST
from shoal.storage.place import is_url, place


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
        """`preferred`, or the first of preferred-2, preferred-3, ... that is not taken."""
        path, number = preferred, 1
        while cls(path).taken:
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
    def taken(self) -> bool:
        """Whether a run goes on here, or has left anything that one can go on with."""
        if not (self.path / _SETTINGS).exists():
            return False
        if self._result.exists() or self.model.exists() or self._snapshots():
            return True
        try:
            with self.held():
                return False
        except ConfigurationError:
            return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the `with` block no other process begins a run here (ConfigurationError if one has)."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigurationError(f"cannot make the run's folder {self.path}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it with the process
            except BlockingIOError:
                raise ConfigurationError(
                    f"another process trains in {self.path} right now: wait for its end, or give another --out"
                ) from None
            yield
        finally:
            os.close(descriptor)

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def sample(self) -> Path:
        return self.path / "sample.txt"

    def snapshot(self, iterations: int) -> Path | str:
        """Where the snapshot after so many iterations goes: a path, or a URL if the run's snapshots go to one."""
        name = f"{_SNAPSHOT}{iterations:06d}"
        return f"{self._shelf.rstrip('/')}/{name}" if isinstance(self._shelf, str) else self._shelf / name

    def last_snapshot(self) -> tuple[Path | str, int]:
        """The complete snapshot with the most iterations, and how many those are.

        SnapshotError if there is none, or if the place they go to cannot be read.
        """
        numbered = self._snapshots()
        if not numbered:
            raise SnapshotError(
                f"{self._shelf} holds no snapshot: the run ended before its first; start it anew with --out {self.path}"
            )
        iterations = max(numbered)
        return self.snapshot(iterations), iterations

    def way_on(self) -> str:
        """What can be done with a run that did not come to its end, in words."""
        go_on = f"go on from its last snapshot with `shoal train gpt --resume {self.path}`"
        try:
            if self._snapshots():
                return go_on
        except SnapshotError as error:
            return f"{error}; once it can be, {go_on}"
        return (
            f"{self._shelf} holds no snapshot yet, so start it anew with --out {self.path}; "
            f"--snapshot-interval N takes one every N iterations"
        )

    def begin(self, settings: Settings, tokenizer: Tokenizer) -> None:
        """Start a run here. What an earlier one left stays as it is."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
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

    def draft(self, outcome: Path) -> Path:
        """Where a new model or sample is written, until `finish` puts it into its place."""
        return outcome.with_name(f"{outcome.name}.new")

    def finish(self, result: Result) -> None:
        """The run has come to its end: the drafts and this result take the place of an earlier outcome."""
        self.draft(self._result).write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
        for outcome in (self.model, self.sample, self._result):
            self.draft(outcome).replace(outcome)

    def finished(self) -> tuple[int, int] | None:
        """Tells one outcome from a later one; None while there is none."""
        if not self._result.exists():
            return None
        status = self._result.stat()
        return status.st_mtime_ns, status.st_ino

    def result(self) -> Result | None:
        """The outcome, or None while there is none."""
        return _read(self._result, Result) if self._result.exists() else None

    def _snapshots(self) -> list[int]:
        """Those that are complete, by their iterations."""
        try:
            below = [item for item in place(self._shelf).below() if item.name.startswith(_SNAPSHOT)]
            return [iterations_of(item.name) for item in below if MANIFEST in item.names()]
        except OSError as error:
            raise SnapshotError(f"{self._shelf}, where snapshots go, cannot be read: {error}") from None

    @property
    def _shelf(self) -> Path | str:
        """What holds the snapshots; a URL is a str."""
        chosen = self.settings().snapshots if (self.path / _SETTINGS).exists() else ""
        return chosen if is_url(chosen) else self.path / chosen

    @property
    def _result(self) -> Path:
        return self.path / "result.json"


def iterations_of(snapshot: Path | str) -> int:
    """How many iterations a snapshot has seen, by its name (SnapshotError if the name does not say)."""
    name = Path(snapshot).name
    digits = name.removeprefix(_SNAPSHOT)
    if not (name.startswith(_SNAPSHOT) and digits.isdecimal()):
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
