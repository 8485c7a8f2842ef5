"""The `unveil` command."""

import functools
import inspect
import operator
import os
import select
import sys
import time
from typing import Annotated, Any

import tyro

from unveil.cli.bench import Bench
from unveil.cli.clip import Clip
from unveil.cli.compare import Compare
from unveil.cli.convert import Convert
from unveil.cli.data import Data
from unveil.cli.embed import Embed
from unveil.cli.evaluate import Evaluate
from unveil.cli.export import Export
from unveil.cli.finetune import Finetune
from unveil.cli.plan import Plan
from unveil.cli.predict import Predict
from unveil.cli.pretrain import Pretrain
from unveil.cli.probe import Probe
from unveil.cli.quickstart import Quickstart
from unveil.cli.recipes import Recipes
from unveil.cli.sample_data import SampleData
from unveil.cli.visualize import Visualize
from unveil.config import UnveilError

COMMANDS = {
    "pretrain": Pretrain,
    "finetune": Finetune,
    "probe": Probe,
    "eval": Evaluate,
    "clip": Clip,
    "predict": Predict,
    "embed": Embed,
    "visualize": Visualize,
    "convert": Convert,
    "export": Export,
    "compare": Compare,
    "quickstart": Quickstart,
    "recipes": Recipes,
    "plan": Plan,
    "bench": Bench,
    "data": Data,
    "sample-data": SampleData,
}

SECONDS_FOR_THE_FIRST = 3.0
"""How long the other processes of torchrun wait before they print an error of their own."""

DESCRIPTION = """Vision foundation models on your own images.

First: unveil quickstart. Then: unveil pretrain PHOTOS --out runs/mine"""


def choice_of_command(*, brief: bool) -> Any:
    """The commands as tyro wants them.

    Args:
        brief: with the first paragraph of each one's help only, so that all of them fit a screen.
    """
    described = []
    for name, kind in COMMANDS.items():
        summary = (inspect.getdoc(kind) or "").partition("\n\n")[0] if brief else None
        described.append(Annotated[kind, tyro.conf.subcommand(name=name, description=summary)])
    return functools.reduce(operator.or_, described)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit.

    Status: 0 done, 1 something that a person can mend, 2 options that do not exist; stopped by Ctrl-C 130, by SIGTERM
    143, after saving, so that the same command goes on; or, by a second Ctrl-C, at once; 141 where whoever read the
    output has left.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = tyro.cli(
        choice_of_command(brief=not any(argument in COMMANDS for argument in arguments)),
        prog="unveil",
        description=DESCRIPTION,
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    try:
        status = command.run()
        sys.stdout.flush()
    except BrokenPipeError:
        if not nobody_reads():
            raise
        # What is still to be flushed when Python ends must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except UnveilError as error:
        if os.environ.get("RANK", "0") != "0":
            # What all processes found, the first one says, and torchrun ends the others meanwhile.
            time.sleep(SECONDS_FOR_THE_FIRST)
        print(f"unveil: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("unveil: stopped by Ctrl-C", file=sys.stderr)
        status = 130
    sys.exit(status)


def nobody_reads() -> bool:
    """Whether the output goes to a pipe that head, or a pager, has closed."""
    pipe = select.poll()
    pipe.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in pipe.poll(0))


if __name__ == "__main__":
    main()
