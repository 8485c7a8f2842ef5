"""The whole story in minutes: pre-train on unlabelled images, then see what it was worth.

Everything here runs through the same rooms as the commands for real work; nothing is simplified but the sizes.
"""

from unveil.quickstart.captions_report import clip_table
from unveil.quickstart.report import write_report
from unveil.quickstart.story import Clock, Story, table
from unveil.quickstart.tell import tell

__all__ = ["Clock", "Story", "clip_table", "table", "tell", "write_report"]
