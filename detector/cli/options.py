"""Apply the options that several subcommands share."""

from __future__ import annotations

import click


def use_threads(threads: int | None) -> int:
    """Let torch, numba and OpenCV use so many threads; None leaves them as they are. Return the number in use.

    Memory that is freed and kernels that oneDNN makes are kept for the next image, too.
    """
    import torch

    from detector.allocation import keep_freed_memory, keep_kernels

    keep_freed_memory()
    keep_kernels()
    if threads is None:
        return torch.get_num_threads()
    import cv2
    import numba

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, int(getattr(numba.config, "NUMBA_NUM_THREADS", threads))))
    cv2.setNumThreads(threads)
    return threads


def check_device(device: str) -> str:
    """Return the name of a device if torch can compute on it here. Raises click.UsageError otherwise."""
    import torch

    try:
        torch.zeros(1, device=device).add(1).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usable = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise click.UsageError(f"--device: expected one of {', '.join(usable)}, got {device}") from error
    return device
