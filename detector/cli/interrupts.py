"""Hold Ctrl-C back to where nothing is half done, and out of compiled code, which may not survive it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Yield a function to call between items of work: it raises KeyboardInterrupt if Ctrl-C was pressed meanwhile.

    A second Ctrl-C interrupts at once. Outside of the main thread, which alone gets signals, nothing changes.
    """
    pressed = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(number, signal.default_int_handler)

    def check() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
