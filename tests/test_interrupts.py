"""Check that Ctrl-C waits for the end of an item of work, and that a second one does not."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from detector.cli.interrupts import held_back


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_waits_for_the_next_check() -> None:
    before = signal.getsignal(signal.SIGINT)
    done = []
    with pytest.raises(KeyboardInterrupt), held_back() as check:
        check()
        press()
        done.append("item")
        check()
        done.append("too late")
    assert done == ["item"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_comes_at_once() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():
        press()
        done.append("item")
        press()
        done.append("too late")
    assert done == ["item"]


def test_without_an_interrupt_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_back() as check:
        check()
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_may_use_it() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with held_back() as check:
            check()
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
