"""The command line: `gan <command>`, also as `python -m gan <command>`."""

import argparse
import codecs
import faulthandler
import io
import sys
from collections.abc import Sequence


def show_crashes() -> None:
    """Let a crash inside a library, which raises nothing, leave its stack on a real stderr."""
    if sys.stderr is sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable()


def spell_out() -> None:
    """Let standard output say in escapes what its encoding lacks, as a pipe's does on Windows."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and codecs.lookup(out.encoding).name != "utf-8":
        out.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 2 a mistake of the user's, 1 anything else."""
    show_crashes()
    spell_out()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:  # its arguments are Hydra's
        from gan.commands import train

        return train.main(given[1:])
    parser = _parser()
    chosen = parser.parse_args(given)
    try:
        return chosen.func(chosen)
    except (ValueError, OSError) as error:
        print(f"gan: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 1


def _parser() -> argparse.ArgumentParser:
    from gan.commands import (
        bench,
        classifier,
        compare,
        data,
        evaluate,
        export,
        font,
        relabel,
        sample,
    )

    parser = argparse.ArgumentParser(
        prog="gan", description="Train generative adversarial networks."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("train", help="train a model; the same as train.py", add_help=False)
    for command in (data, classifier, relabel, sample, evaluate, compare, font, export, bench):
        command.add_parser(commands)
    return parser
