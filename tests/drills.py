"""Real processes for the drills: forked from a server that has torch and the zoo imported.

Importing takes seconds, a fork milliseconds: so every drill can have processes of its own, which
are killed for real. What runs in them must be a function of a module that they can import.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch

PRELOAD = ["tests.training_setups", "zoo.cli.train"]


@functools.cache
def server() -> ForkServerContext:
    """The server; it starts with the first process."""
    # site-packages may hold a package `tests` of somebody else's, which would be found first
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


class Run:
    """A function in a process of its own: its result, or what it said and how it ended."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        folder: Path,
        name: str = "run",
        env: dict[str, str] | None = None,
        **named: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._result, self._said = folder / f"{name}.result", folder / f"{name}.said"
        self._result.unlink(missing_ok=True)
        task = (function, arguments, named)
        self.process: ForkServerProcess = server().Process(
            target=_task, args=(task, env or {}, self._result, self._said)
        )
        self.process.start()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 60) -> int:
        """The exit status, negative for a signal; a process that hangs fails the test."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s: {self.said}")
        return self.process.exitcode

    @property
    def said(self) -> str:
        """What it wrote to stdout and stderr."""
        return self._said.read_text() if self._said.exists() else ""

    def result(self, seconds: float = 60) -> Any:
        """What the function returned."""
        status = self.wait(seconds)
        assert status == 0, f"status {status}: {self.said}"
        return torch.load(self._result, weights_only=False)


def _task(task: Any, env: dict[str, str], result: Path, said: Path) -> None:
    with said.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        os.environ.update(env)
        torch.set_num_threads(1)
        function, arguments, named = task
        status = 1
        try:
            returned = function(*arguments, **named)
            torch.save(returned, result)
            status = 0
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:  # noqa: BLE001 - the parent reads it
            traceback.print_exc()
        file.flush()
        # no clean-up: threads of a failed process group would keep the process
        os._exit(status)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def ranks(function: Callable[..., Any], *arguments: Any, folder: Path, **named: Any) -> list[Run]:
    """The function in two processes as torchrun starts them."""
    port = free_port()
    return [
        Run(
            function,
            *arguments,
            folder=folder,
            name=f"rank{rank}",
            env={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "GROUP_RANK": "0",
                "TORCHELASTIC_RUN_ID": "drill",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            **named,
        )
        for rank in range(2)
    ]


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)
