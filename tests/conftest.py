"""Tests run in two processes, one thread each: more threads than cores make all of them slow."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
