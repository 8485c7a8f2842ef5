"""The `unveil` command."""

import os
import sys
import time
from typing import Annotated

import tyro

from unveil.cli.pretrain import Pretrain
from unveil.cli.quickstart import Quickstart
from unveil.cli.recipes import Recipes
from unveil.cli.sample_data import SampleData
from unveil.config import UnveilError

Command = (
    Annotated[Pretrain, tyro.conf.subcommand(name="pretrain")]
    | Annotated[Quickstart, tyro.conf.subcommand(name="quickstart")]
    | Annotated[Recipes, tyro.conf.subcommand(name="recipes")]
    | Annotated[SampleData, tyro.conf.subcommand(name="sample-data")]
)

SECONDS_FOR_THE_FIRST = 3.0
"""How long the other processes of torchrun wait before they print an error of their own."""

DESCRIPTION = """Vision foundation models on your own images.

First: unveil quickstart. Then: unveil pretrain PHOTOS --out runs/mine"""


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit.

    Status: 0 done, 1 something that a person can mend, 2 options that do not exist, 130 stopped by Ctrl-C at once,
    143 stopped by Ctrl-C or SIGTERM after saving, so that the same command goes on.
    """
    command = tyro.cli(
        Command,
        prog="unveil",
        description=DESCRIPTION,
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    try:
        status = command.run()
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


if __name__ == "__main__":
    main()
