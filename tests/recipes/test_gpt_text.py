"""The corpus and its tokenisers: the same in every process, and back to the same text."""

import builtins
from pathlib import Path

import numpy as np
import pytest

from shoal.errors import ConfigurationError
from shoal.recipes.gpt import text as corpus
from shoal.recipes.gpt.text import load_tokenizer, make_tokenizer, read_text, split

TEXT = "the shoal swims;\nthe schöne shoal swims again 🐟\n" * 40


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_text_survives_the_tokenizer_and_the_tokenizer_its_json(kind: str) -> None:
    tokenizer = make_tokenizer(TEXT, kind, 300)
    again = load_tokenizer(tokenizer.to_json())
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids.tolist()) == TEXT
    assert np.array_equal(again.encode(TEXT), ids) and again.size == tokenizer.size
    assert ids.dtype == np.int64 and ids.max() < tokenizer.size
    assert tokenizer.decode([tokenizer.start]) == "\n"


def test_characters_are_numbered_in_their_order() -> None:
    tokenizer = make_tokenizer("banana\n", "char", 0)
    assert tokenizer.size == 4 and tokenizer.encode("ban\n").tolist() == [2, 1, 3, 0]


def test_byte_pairs_learn_the_text_and_any_other() -> None:
    tokenizer = make_tokenizer(TEXT, "bpe", 300)
    assert 256 < tokenizer.size <= 300
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 3
    assert tokenizer.decode(tokenizer.encode("völlig neu: 魚").tolist()) == "völlig neu: 魚"


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'z'"):
        make_tokenizer("abc", "char", 0).encode("az")


def test_bpe_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"pip install 'shoal\[text\]'"):
        make_tokenizer("abc", "bpe", 300)


@pytest.mark.parametrize("document", ["", "[]", "{}", '{"kind": "char"}'])
def test_a_broken_tokenizer_file_is_one_error(document: str) -> None:
    with pytest.raises(ConfigurationError, match="not a tokeniser"):
        load_tokenizer(document)


def test_nine_tenths_train() -> None:
    training, validation = split(np.arange(1000), 64)
    assert training.tolist() == list(range(900)) and validation.tolist() == list(range(900, 1000))


def test_a_tiny_text_is_refused_with_the_size_it_needs() -> None:
    with pytest.raises(ConfigurationError, match="660 tokens of text at least"):
        split(np.arange(400), 64)
    split(np.arange(660), 64)


def test_the_library_is_plain_python_source_of_a_sensible_size() -> None:
    text = read_text("")
    assert text == read_text("")
    assert 1 << 20 < len(text) <= corpus.LIBRARY_BYTES_MAX
    assert text.isascii() and "def " in text


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.txt does not exist"):
        read_text(str(tmp_path / "missing.txt"))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("ü".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="not UTF-8: byte 0 is 0xfc"):
        read_text(str(latin))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_text(str(tmp_path))
