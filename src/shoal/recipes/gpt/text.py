"""The corpus and its tokenisers: the same text and settings give the same ids in every process.

Without a file the corpus is the machine's own Python standard library: real text, large, and there without a
download. A tokeniser is made from the text on the spot and kept beside the run, so that a resumed run and a
sample use the very same one.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ConfigurationError
from shoal.recipes.gpt.settings import TokenizerKind

TEXT_BYTES_MAX = 1 << 30
LIBRARY_BYTES_MAX = 4 << 20
TRAINING_SHARE = 0.9  # the first part trains, the rest validates

Ids = NDArray[np.int64]


class Tokenizer(Protocol):
    """Text to ids and back; to_json gives what `load_tokenizer` reads."""

    @property
    def size(self) -> int:
        """How many different ids there are."""
        ...

    @property
    def start(self) -> int:
        """The id to begin a new text after: the end of a line, where the text had lines."""
        ...

    def encode(self, text: str) -> Ids: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def to_json(self) -> str: ...


def read_text(path: str) -> str:
    """The text of `path`, or of the standard library when path is "" (ConfigurationError if there is none)."""
    return _read_file(Path(path)) if path else _read_library(Path(sysconfig.get_path("stdlib")))


def make_tokenizer(text: str, kind: TokenizerKind, vocab_size: int) -> Tokenizer:
    """A tokeniser made from `text`; vocab_size counts for BPE, whose training takes a second per few MB."""
    return Characters("".join(sorted(set(text)))) if kind == "char" else Pairs.train(text, vocab_size)


def load_tokenizer(document: str) -> Tokenizer:
    """The tokeniser that `to_json` wrote (ConfigurationError if the document is none)."""
    try:
        fields = json.loads(document)
        kind, content = fields["kind"], fields["content"]
        return Characters(content) if kind == "char" else Pairs(json.dumps(content))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"this is not a tokeniser that Shoal wrote: {error!r}") from None


def split(ids: Ids, block_size: int) -> tuple[Ids, Ids]:
    """(training ids, validation ids): 90% and 10%, each long enough for one crop (ConfigurationError if not)."""
    at = int(TRAINING_SHARE * len(ids))
    shortest = min(at, len(ids) - at)
    if shortest < block_size + 1:
        raise ConfigurationError(
            f"the text has {len(ids)} tokens, of which {len(ids) - at} validate: too few for one crop of block_size="
            f"{block_size} + 1; give {10 * (block_size + 2)} tokens of text at least, or a smaller block_size"
        )
    return ids[:at], ids[at:]


@dataclass(frozen=True)
class Characters:
    """One id per character, in the order of `alphabet`."""

    alphabet: str

    @property
    def size(self) -> int:
        return len(self.alphabet)

    @property
    def start(self) -> int:
        return max(0, self.alphabet.find("\n"))

    def encode(self, text: str) -> Ids:
        """ids of the characters (ConfigurationError for one that is not in the alphabet)."""
        known, codes = _codes(self.alphabet), _codes(text)
        places = np.searchsorted(known, codes).clip(max=len(known) - 1)
        strangers = codes[known[places] != codes]
        if len(strangers):
            raise ConfigurationError(
                f"the text has the character {chr(strangers[0])!r}, which the text that the tokeniser was made from "
                "does not have; train anew on this text, or remove the character"
            )
        return places.astype(np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.alphabet[index] for index in ids)

    def to_json(self) -> str:
        return json.dumps({"kind": "char", "content": self.alphabet})


class Pairs:
    """Byte-pair encoding over bytes (Sennrich et al. 2016, arXiv 1508.07909), by the package `tokenizers`."""

    def __init__(self, document: str) -> None:
        """document: the JSON of a `tokenizers.Tokenizer`."""
        self._tokenizer = _tokenizers().Tokenizer.from_str(document)

    @classmethod
    def train(cls, text: str, vocab_size: int) -> Pairs:
        library = _tokenizers()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(tokenizer.to_str())

    @property
    def size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def start(self) -> int:
        return int(self.encode("\n")[0])

    def encode(self, text: str) -> Ids:
        lines = self._tokenizer.encode_batch_fast(text.splitlines(keepends=True))
        return np.concatenate([np.zeros(0, np.int64), *(np.array(line.ids, np.int64) for line in lines)])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def to_json(self) -> str:
        return json.dumps({"kind": "bpe", "content": json.loads(self._tokenizer.to_str())})


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


def _tokenizers() -> Any:  # the package has no types for its submodules
    try:
        import tokenizers
    except ImportError:
        raise ConfigurationError(
            "the BPE tokeniser needs the package `tokenizers`, which is not installed: "
            "run `pip install 'shoal[text]'`, or use --tokenizer char"
        ) from None
    return tokenizers


def _read_file(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > TEXT_BYTES_MAX:
            raise ConfigurationError(f"the text {path} has {size:,} bytes; at most {TEXT_BYTES_MAX:,} fit this recipe")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"the text {path} does not exist; give the path of a text file") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"the text {path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}; convert it first, "
            f"for example with `iconv -t utf-8`"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the text {path} cannot be read: {error.strerror}") from None


def _read_library(folder: Path) -> str:
    """Modules of one file in the order of their names, ASCII ones, up to LIBRARY_BYTES_MAX.

    Packages are left out: their tables and generated files (encodings, pydoc_data) teach a small model little.
    """
    found = [content for path in sorted(folder.glob("*.py")) if (content := path.read_bytes()).isascii()]
    if not found:
        raise ConfigurationError(f"{folder} holds no source of the standard library; give a text with --text FILE")
    return b"".join(found)[:LIBRARY_BYTES_MAX].decode("ascii")
