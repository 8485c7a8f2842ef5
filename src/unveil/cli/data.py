"""`unveil data`: sets of images before training."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from unveil.cli.data_check import DataCheck
from unveil.cli.data_pack import DataPack


@dataclass(frozen=True)
class Data:
    """Pack images into tar shards; look for what is wrong with them.

    Example: unveil data check photos/
    """

    what: (
        Annotated[DataPack, tyro.conf.subcommand(name="pack")]
        | Annotated[DataCheck, tyro.conf.subcommand(name="check")]
    )
    """What to do."""

    def run(self) -> int:
        return self.what.run()
