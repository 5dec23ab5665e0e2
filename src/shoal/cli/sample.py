"""`shoal sample`: text from a model that `shoal train gpt` trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or a snapshot in it.")],
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "",
    tokens: Annotated[int, typer.Option(help="Tokens to write.", min=1)] = 500,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier text; 0: the likeliest.", min=0.0)] = 0.8,
    top_k: Annotated[int, typer.Option(help="Choose among this many likeliest tokens.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.", min=0)] = 1337,
) -> None:
    """Write text with a trained GPT."""
    from shoal.recipes.gpt.folder import Folder
    from shoal.recipes.gpt.sample import load, write

    folder = Folder.of(run)
    model, tokenizer = load(folder, None if folder.path == run else run)
    typer.echo(write(model, tokenizer, tokens, prompt=prompt, temperature=temperature, top_k=top_k, seed=seed))
