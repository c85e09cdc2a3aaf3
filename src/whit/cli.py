"""The command line: parses, calls a verb, prints. No logic, and nothing heavy is imported to parse.

Flags come from the settings dataclasses; `whit.toml` beside the data (or in the current folder) may hold any
option under a table of the command's name. Command line beats file beats default. The answer goes to stdout,
talk to stderr, and the exit code says which kind of failure it was (see `whit.errors`; 141 where the reader of
stdout went away, 143 where SIGTERM ended training).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
from click.shell_completion import CompletionItem

from whit import settings as options
from whit.errors import UsageError, WhitError


@dataclass(frozen=True)
class Command:
    """A command: its settings, where its verb is, what it is for, and an example."""

    name: str
    settings: type
    verb: str
    help: str
    example: str
    trains: bool = False


COMMANDS = (
    Command("train", options.TrainSettings, "whit.verbs.personal:command",
            "Specialise a base on your rows, and prove what it did.",
            'whit train tickets.jsonl --instruction "Turn the ticket into JSON."', trains=True),
    Command("sweep", options.SweepSettings, "whit.verbs.sweep:sweep",
            "Many variants of the settings: which is best, and is it any good?",
            "whit sweep grid.toml --halvings 2", trains=True),
    Command("eval", options.EvalSettings, "whit.verbs.evaluate:evaluate",
            "Is it better on these rows, by how much, and how sure is that? The exit code is the verdict.",
            "whit eval tickets tickets-later.jsonl"),
    Command("run", options.RunSettings, "whit.verbs.run:command",
            "Answer a prompt, or every line of standard input.",
            'whit run tickets "my card was stolen"'),
    Command("chat", options.ChatSettings, "whit.verbs.run:chat",
            "Talk with an adapter or a base, turn by turn.",
            "whit chat tickets"),
    Command("compare", options.CompareSettings, "whit.verbs.compare:compare",
            "Base and adapter side by side, on the held-out rows.",
            "whit compare tickets"),
    Command("show", options.ShowSettings, "whit.verbs.show:show",
            "What is known of an adapter: card, sizes, text form, QR code.",
            "whit show tickets --qr"),
    Command("export", options.ExportSettings, "whit.verbs.export:command",
            "Write an adapter in another program's format, checked against whit's own logits.",
            "whit export tickets tickets-lora --to lora"),
    Command("import", options.ImportSettings, "whit.verbs.importing:command",
            "Read a PEFT LoRA or TinyLoRA, checked against what PEFT computes with it.",
            "whit import tickets-peft tickets-back"),
    Command("bundle", options.BundleSettings, "whit.verbs.bundle:bundle",
            "A folder that is a web page: run, teach and share adapters with the network off.",
            "whit bundle tickets page --open"),
    Command("route", options.RouteSettings, "whit.verbs.route:route",
            "An OpenAI-compatible gateway: the smallest tier that does the job, and nothing sensitive leaves.",
            "whit route tiers.toml"),
    Command("check", options.CheckSettings, "whit.verbs.check:check",
            "What is wrong with these rows?",
            "whit check tickets.jsonl", trains=True),
    Command("bake", options.BakeSettings, "whit.verbs.bake:bake",
            "An adapter in the place of a long standing instruction.",
            "whit bake guide.md inputs.jsonl", trains=True),
    Command("pull", options.PullSettings, "whit.verbs.pull:command",
            "Fetch a base once, into the cache folder.",
            "whit pull smollm2"),
    Command("bases", options.BasesSettings, "whit.verbs.bases:command",
            "The bases there are: size, licence, whether present.",
            "whit bases"),
    Command("serve", options.ServeSettings, "whit.verbs.serve:serve",
            "Answer over an OpenAI-compatible API, each row of a batch with its own adapter.",
            "whit serve --base smollm2 --store whit.db"),
    Command("store", options.StoreSettings, "whit.verbs.store:store",
            "Adapters by name and version, in one file or a PostgreSQL database.",
            "whit store add team/alice tickets"),
)  # fmt: skip


_CLOSED_PIPE, _TERMINATED = 141, 143  # as a shell reports a program that SIGPIPE or SIGTERM ended


class _Example(click.Command):
    """A command whose help begins with an example."""

    example: tuple[str, ...] = ()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for line in self.example:
            formatter.write(f"$ {line}\n")
        formatter.write_paragraph()
        super().format_help(ctx, formatter)


class _Whit(_Example, click.Group):
    """The command of commands."""

    example = (
        "whit train rows.jsonl          # split, tune, prove: makes the folder rows/",
        'whit run rows "some input"     # use it',
    )

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # the main job first, not the alphabet


def build() -> click.Group:
    """The whole command line."""

    @click.group(cls=_Whit, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
    @click.version_option(package_name="whit")
    def whit() -> None:
        """Specialise small language models with very small adapters, and prove that they help."""

    for command in COMMANDS:
        whit.add_command(_click_command(command))
    whit.add_command(_completion(whit))
    return whit


def main() -> None:
    """Entry point: `whit`, with exit codes by cause."""
    try:
        code = build().main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except WhitError as error:
        print(f"whit: {_printable(str(error))}", file=sys.stderr)
        sys.exit(_TERMINATED if _by_sigterm(error) else error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        if _by_sigterm(error):
            print("whit: stopped by SIGTERM", file=sys.stderr)
            sys.exit(_TERMINATED)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, in a command that saves its state when it is interrupted."""


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """For the length of a block SIGTERM is as Ctrl-C, unless it has a meaning already."""

    def interrupt(*_: object) -> None:
        raise _Terminated

    if (
        signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _by_sigterm(error: BaseException | None) -> bool:
    """Whether an error comes from SIGTERM."""
    while error is not None and not isinstance(error, _Terminated):
        error = error.__cause__ or error.__context__
    return error is not None


def _printable(text: str) -> str:
    """`text` on one line, with control characters spelt out: names in it may come from anywhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _click_command(command: Command) -> click.Command:
    hints = get_type_hints(command.settings)
    parameters = [_parameter(part, hints[part.name]) for part in fields(command.settings)]
    parameters.append(click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."))
    parameters.append(
        click.Option(
            ["--config"],
            type=click.Path(dir_okay=False, path_type=Path),
            help="Options from this file, not ./whit.toml.",
        )
    )
    built = _Example(
        command.name, params=parameters, callback=_caller(command), help=command.help, short_help=command.help
    )
    built.example = (command.example,)
    return built


def _parameter(part: Field[Any], hint: Any) -> click.Parameter:
    about = part.metadata
    kind = _click_type(hint, about)
    default = None if part.default is MISSING else part.default
    if about["positional"]:
        many = bool(about.get("many"))
        return click.Argument(
            [part.name], type=kind, nargs=-1 if many else 1, required=not about.get("optional"),
            shell_complete=_COMPLETE.get(part.name),
        )  # fmt: skip
    flag = "--" + part.name.replace("_", "-")
    # Defaults stand in the settings alone: an option that was not given is None here, so that a file can speak.
    if hint is bool:
        # Both ways round, so that the command line can take back what a file says.
        spelt = f"{flag}/--no-{flag[2:]}"
        return click.Option([spelt, part.name], is_flag=True, default=None, help=_help(about, default))
    return click.Option(
        [flag, part.name], type=kind, default=None, multiple=bool(about.get("many")), help=_help(about, default),
        shell_complete=_COMPLETE.get(part.name),
    )  # fmt: skip


def _bases(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Bases whose names begin so, and files: a base may be one."""
    from whit.bases.catalogue import BUILTIN, KNOWN

    names = [CompletionItem(name) for name in (*BUILTIN, *KNOWN) if name.startswith(begun)]
    return [*names, CompletionItem(begun, type="file")]


def _files(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(begun, type="file")]


#: What a shell offers for options that are no paths by type, but may name one.
_COMPLETE = {"base": _bases, "adapter": _files}


def _help(about: Any, default: Any) -> str:
    text = str(about["help"])
    if default in (None, (), False):
        return text
    shown = (
        ", ".join(str(item) for item in default) if isinstance(default, tuple) else "on" if default is True else default
    )
    return f"{text}  [default: {shown}]"


def _click_type(hint: Any, about: Any) -> Any:
    if about.get("choices"):
        return click.Choice(about["choices"])
    inner = next(item for item in (get_args(hint) or (hint,)) if item not in (type(None), Ellipsis))
    least, most = about.get("least"), about.get("most")
    if inner is int:
        return click.IntRange(least, most) if least is not None or most is not None else click.INT
    if inner is float:
        return click.FloatRange(least, most) if least is not None or most is not None else click.FLOAT
    if inner is Path:
        return click.Path(path_type=Path)
    return click.STRING


def _caller(command: Command) -> Callable[..., int]:
    def call(as_json: bool, config: Path | None, **given: Any) -> int:
        from whit.configuration import read_config
        from whit.talk import Talk

        stated = {key: value for key, value in given.items() if value not in (None, ())}
        beside = stated.get("data")
        folder = Path(beside).parent if beside else Path()
        from_file = read_config(command.name, command.settings, config, folder, tuple(each.name for each in COMMANDS))
        settings = command.settings(**{**from_file, **stated})
        module, _, function = command.verb.partition(":")
        verb = getattr(importlib.import_module(module), function)
        with _sigterm_interrupts() if command.trains else contextlib.nullcontext():
            result = verb(settings, talk=Talk())
        if result is None:
            return 0
        if as_json:
            _answer(json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False, indent=2))
        elif pieces := getattr(result, "pieces", None):
            for piece in pieces():
                _answer(piece)
        elif text := result.to_text():
            _answer(text)
        return int(getattr(result, "exit_code", 0))

    return call


def _answer(text: str) -> None:
    """Print the answer; end quietly where nobody reads it any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is left in the buffer is flushed at exit, and would fail there again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_CLOSED_PIPE)


def _completion(group: click.Group) -> click.Command:
    @click.command("completion", cls=_Example, short_help="Print the shell's completion script.")
    @click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
    def completion(shell: str) -> None:
        """Print the completion script of a shell."""
        from click.shell_completion import get_completion_class

        found = get_completion_class(shell)
        if found is None:
            raise UsageError(f"no completion for {shell}")
        _answer(found(group, {}, "whit", "_WHIT_COMPLETE").source())

    completion.example = ("whit completion bash >> ~/.bashrc",)
    return completion
