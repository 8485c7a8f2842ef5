"""SIGTERM and Ctrl-C ask the loop to save and stop; a second Ctrl-C stops at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.requested = False
        self.by_keyboard = False
        """It was Ctrl-C."""


@contextmanager
def listening(announce: bool) -> Iterator[Interrupt]:
    """Catch the two signals inside the block; the handlers from before are put back after it.

    Outside the main thread Python allows no handlers, and nothing is caught.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A forked data worker, which inherits this handler: Ctrl-C is the parent's business, SIGTERM its own.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        interrupt.requested = True
        if number == signal.SIGINT:
            interrupt.by_keyboard = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if announce:
            # print() may be interrupted half-way by this very handler; a bare write may not.
            os.write(2, b"\nstopping after this step and saving; Ctrl-C once more stops at once\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
