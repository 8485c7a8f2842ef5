"""The `unveil` command."""

import sys
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

DESCRIPTION = """Vision foundation models on your own images.

First: unveil quickstart. Then: unveil pretrain PHOTOS --out runs/mine"""


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit status: 0 done, 1 a mistake the person can mend, 2 unknown options, 130 or 143 stopped."""
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
        print(f"unveil: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("unveil: stopped by Ctrl-C", file=sys.stderr)
        status = 130
    sys.exit(status)
