"""Films leave no memory behind: nothing for the garbage collector, no packet of a dropped loop."""

from __future__ import annotations

import ast
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from films import MakeFilm

from zoo.data import cutting
from zoo.data.container import demux, open_video
from zoo.data.film import open_film
from zoo.data.video import VideoWriter, probe, read_clip

ROOT = Path(__file__).parents[2]
Garbage = Callable[[], Counter[str]]


@pytest.fixture
def garbage() -> Iterator[Garbage]:
    """Counts by type PyAV's objects that only the garbage collector would have freed."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)

    def found() -> Counter[str]:
        gc.collect()
        kinds = (type(item) for item in gc.garbage)
        return Counter(kind.__name__ for kind in kinds if kind.__module__.startswith("av."))

    yield found
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()
    gc.collect()


def test_frames_are_freed_as_they_go(tmp_path: Path, make_film: MakeFilm, garbage: Garbage) -> None:
    path = make_film(tmp_path / "film.mp4", frames=40)
    probe(path)
    read_clip(path, frames=9, start=0.5)
    read_clip(path, frames=4, rate=5.0, short_side=16)
    with open_film(path, start=0.4, fps=10) as frames:
        next(frames)
    list(cutting.cut(path, cutting.plan(path, seconds=0.5)))
    with VideoWriter(tmp_path / "new.mp4", width=48, height=32, rate=Fraction(25)) as writer:
        writer.write(np.zeros((32, 48, 3), np.uint8))
    assert garbage() == Counter()


def test_a_loop_over_packets_ends_with_its_block(tmp_path: Path, make_film: MakeFilm) -> None:
    container, stream = open_video(make_film(tmp_path / "film.mp4", frames=40))
    with container, demux(container, stream) as packets:
        next(packets)
    assert next(packets, None) is None


def test_every_loop_over_packets_has_a_block() -> None:
    """What PyAV's `demux` holds stays for good where a loop is left early and not closed."""
    found, blocks = [], 0
    for path in (ROOT / "zoo").rglob("*.py"):
        tree = ast.parse(path.read_text())
        within = {id(item.context_expr) for node in ast.walk(tree) for item in _items(node)}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            bare = name.endswith(".demux") and path.name != "container.py"
            if bare or (name == "demux" and id(call) not in within):
                found.append(f"{path.relative_to(ROOT)}:{call.lineno} {name}")
            blocks += name == "demux"
    assert not found
    assert blocks >= 8


def _items(node: ast.AST) -> list[ast.withitem]:
    return node.items if isinstance(node, ast.With) else []
