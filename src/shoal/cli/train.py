"""`shoal train`: a recipe from text to trained model, on servers and workers of this machine.

The options of `gpt` are the fields of its Settings: one table gives the run, the command line and its help.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from shoal.cli.run import Replicas, Transport
from shoal.cli.secure import TlsCa, TlsCert, TlsKey, use_tls
from shoal.errors import ConfigurationError, JobError, ShoalError
from shoal.launch.plan import prepared
from shoal.recipes.gpt.folder import Folder, Result, iterations_of
from shoal.recipes.gpt.settings import FIXED, Settings
from shoal.recipes.gpt.text import Tokenizer, make_tokenizer, read_text, split
from shoal.storage.place import absolute, is_url

OUT_DEFAULT = Path("out/gpt")

train = typer.Typer(name="train", help="Train a model by a recipe.", no_args_is_help=True, rich_markup_mode=None)


def gpt(
    ctx: typer.Context,
    servers: Annotated[int, typer.Option(help="Processes that hold the parameters.")] = 2,
    replicas: Replicas = 1,
    max_restarts: Annotated[int, typer.Option(help="How often killed workers are started again, in all.")] = 3,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", metavar="DIR", show_default=f"{OUT_DEFAULT}, or -2, ...")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on from this run or snapshot, with its options; a snapshot's URL needs the run's folder in --out.",
            metavar="PATH",
        ),
    ] = None,
    transport: Transport = "auto",
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the result here as well.", metavar="FILE")
    ] = None,
    **options: object,
) -> None:
    """Train a language model on text; options are named as in nanoGPT (--n_layer is --n-layer).

    Shows loss, speed, staleness and bytes while it trains; ends with the validation loss, a sample of text
    and a snapshot. Exits with 0, or with 2 and the reason.
    """
    if find_spec("torch") is None:
        raise ConfigurationError("training needs PyTorch, which is not installed: run `pip install 'shoal[torch]'`")
    use_tls(tls_cert, tls_key, tls_ca)
    given = {name: value for name, value in options.items() if _is_given(ctx, name)}
    if given.get("text"):
        given["text"] = str(Path(str(given["text"])).resolve())  # a resumed run may start elsewhere
    if given.get("snapshots"):
        given["snapshots"] = absolute(str(given["snapshots"]))
    folder, snapshot, settings, tokenizer = (
        _resumed(resume, out, given) if resume else _started(out or OUT_DEFAULT, given, anywhere=out is None)
    )
    if report is not None:
        _check_report(report)
    prepared(_command(folder), settings.workers, servers, max_restarts=max_restarts, replicas=replicas, resume=snapshot)
    with folder.held():  # nothing is written before all that can be known is known to be well
        before = folder.finished()
        folder.begin(settings, tokenizer)
        typer.echo(f"the run's folder: {folder.path}")
        _run(folder, settings, servers, replicas, max_restarts, snapshot, transport)
        result = folder.result()
        if result is None or folder.finished() == before:
            gone = "worker 0, which writes it, was gone by then"
            raise JobError(f"the job ended without a result in {folder.path}: {gone}; {folder.way_on()}")
        typer.echo(_farewell(folder, settings, result))
    if report is not None:
        _write_report(report, folder, result)


def _run(
    folder: Folder,
    settings: Settings,
    servers: int,
    replicas: int,
    max_restarts: int,
    snapshot: Path | str | None,
    transport: str,
) -> None:
    """Train; leaves by typer.Exit when the script ends badly."""
    from shoal.cli.live import view
    from shoal.launch.local import launch

    source = settings.text or "the Python standard library"
    with view(f"GPT on {source}", settings.batch_size, done_iters=settings.done_iters) as shown:
        status = launch(
            _command(folder),
            settings.workers,
            servers,
            host=os.environ.get("SHOAL_HOST") or "127.0.0.1",
            max_restarts=max_restarts,
            replicas=replicas,
            resume=snapshot,
            on_line=shown.line,
            on_status=shown.status,
            way_on=folder.way_on,
            env=os.environ | {"SHOAL_TRANSPORT": transport},
        )
    if status != 0:
        typer.echo(f"shoal: the run ended early, with exit status {status}; {folder.way_on()}", err=True)
        raise typer.Exit(status)


def _command(folder: Folder) -> tuple[str, ...]:
    return "-m", "shoal.recipes.gpt.worker", str(folder.path)


def _check_report(report: Path) -> None:
    """Whether the result can be written there in the end (ConfigurationError if not)."""
    folder = report.absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"cannot write --json {report}: the folder {folder} does not exist")
    if report.exists() and not report.is_dir() and not report.is_file():
        return  # a pipe or a terminal
    fresh = not report.exists()
    try:
        report.open("ab").close()
    except OSError as error:
        raise ConfigurationError(f"cannot write --json {report}: {error.strerror}; name a file") from None
    if fresh:
        report.unlink()


def _write_report(report: Path, folder: Folder, result: Result) -> None:
    try:
        report.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ShoalError(
            f"the model is trained, but --json {report} cannot be written: {error.strerror}; "
            f"the same is in {folder.path / 'result.json'}"
        ) from None


Plan = tuple[Folder, Path | str | None, Settings, Tokenizer]


def _started(out: Path, given: dict[str, Any], *, anywhere: bool) -> Plan:
    """A new run in `out`, or beside it if that is taken and the user did not ask for it by name."""
    folder = Folder.fresh(out)
    if not anywhere and folder.path != out:
        raise ConfigurationError(
            f"{out} holds a run already: give another --out, or go on with it by --resume {out} --max-iters N"
        )
    settings = Settings(**given)
    text = read_text(settings.text)
    tokenizer = make_tokenizer(text, settings.tokenizer, settings.vocab_size)
    split(tokenizer.encode(text), settings.block_size)
    return folder, None, settings, tokenizer


def _resumed(path: str, out: Path | None, given: dict[str, Any]) -> Plan:
    """The run of `path`, going on in its own folder or in `out`; behind a URL, the run of `out`."""
    where = path if is_url(path) else Path(path)
    old = Folder.of(where if isinstance(where, Path) else out or OUT_DEFAULT)
    snapshot, iterations = old.last_snapshot() if old.path == where else (where, iterations_of(where))
    before = old.settings()
    for name in FIXED:
        if name in given and given[name] != getattr(before, name):
            raise ConfigurationError(
                f"{name}={given[name]} cannot be changed: {snapshot} was trained with {name}={getattr(before, name)}"
            )
    settings = replace(before, **given, done_iters=iterations)
    tokenizer = old.tokenizer()
    split(tokenizer.encode(read_text(settings.text)), settings.block_size)
    folder = Folder(out) if out else old
    if folder.path.resolve() != old.path.resolve() and folder.taken:
        raise ConfigurationError(f"{out} holds another run already: give another --out, or none to go on in {old.path}")
    return folder, snapshot, settings, tokenizer


def _farewell(folder: Folder, settings: Settings, result: Result) -> str:
    """What the run came to, and how to go on."""
    longer = settings.max_iters + settings.max_iters // 2
    ways_on = {
        f"shoal sample {folder.path}": "more text from this model",
        f"shoal train gpt --resume {folder.path} --max-iters {longer}": "train it further",
        "shoal status --watch": "watch a running job, from a second terminal",
        "shoal run --workers 2 --servers 2 SCRIPT.py": "train a model of your own",
    }
    width = max(map(len, ways_on))
    return "\n".join(
        (
            "",
            folder.sample.read_text(encoding="utf-8").strip("\n"),
            "",
            f"validation loss {result.val_loss:.4f}, training loss {result.train_loss:.4f} (nats per token)",
            f"{result.iterations:,} iterations, {result.tokens:,} tokens, {result.seconds:,.0f} s",
            f"snapshot: {result.snapshot}",
            "",
            "Go on with:",
            *(f"  {command.ljust(width)}  {what}" for command, what in ways_on.items()),
        )
    )


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Whether the user set this option, so that it overrides what a resumed run says."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each annotated field of Settings, in front of its own."""
    signature = inspect.signature(command, eval_str=True)
    settings = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(Settings, name),
            annotation=Annotated[hint.__origin__, typer.Option(help=hint.__metadata__[0], metavar=_METAVARS.get(name))],
        )
        for name, hint in get_type_hints(Settings, include_extras=True).items()
        if get_origin(hint) is Annotated
    ]
    own = [
        item.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for item in signature.parameters.values()
        if item.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = [*settings, *own]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    return command


_METAVARS = {"text": "FILE", "snapshots": "PATH"}

train.command(context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})(_with_settings(gpt))


@train.callback()
def _group() -> None:
    """Train a model by a recipe."""
