"""The C allocator's settings for tensors on a CPU."""

from __future__ import annotations

import ctypes
import sys

import torch

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the system.

    Large tensors otherwise fault in fresh pages each time they are made, which costs more than
    many operations on them (adding two 71 MB tensors: 47 ms before, 26-36 ms after). Memory stays
    reserved until the process ends. Does nothing without glibc, or where CUDA does the work.
    """
    if not sys.platform.startswith("linux") or torch.cuda.is_available():
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library: it has no such setting
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 2**28)
