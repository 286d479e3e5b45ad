"""Kill -9 at a random moment, resume, again and again: is the curve the one of a run left alone?

    python -m tests.scripts.resume_rounds --rounds 500 --out .github/resume_rounds.json

Every round is a process that trains a narrow net, saves after each step and is killed after a
random time, so in the middle of a step, of a save or of its start. Rounds go through the families.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.drills import Run, until
from tests.training_setups import SETUPS, train
from zoo.lit.checkpoints import fault, newest_whole, previous


def session(family: str, folder: Path, steps: int) -> int:
    """Train from the last checkpoint, if there is one, to the end."""
    last = folder / "last.ckpt"
    there = last.exists() or previous(last).exists()
    trainer = train(family, folder, steps=steps, resume=newest_whole(last) if there else None)
    return int(trainer.global_step)


def curve(folder: Path) -> dict[int, str]:
    """Loss and clips by step; a step that was done twice must have come out the same."""
    lines: dict[int, str] = {}
    for line in (folder / "diary0").read_text().splitlines():
        step, _, rest = line.partition(" ")
        before = lines.setdefault(int(step), rest)
        assert before == rest, f"step {step} came out as {before}, then as {rest}"
    return lines


def digest(file: Path) -> str:
    """Of weights, averages, optimizers, schedules, seed and position in a checkpoint."""
    state = torch.load(file, weights_only=False)
    total = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            total.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                total.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            total.update(repr(value).encode())

    for key in (
        *("state_dict", "current_model_state", "averaging_state", "optimizer_states"),
        *("lr_schedulers", "global_step", "seed", "ZooDataModule"),
    ):
        add(state[key])
    return total.hexdigest()


def rounds(
    family: str, folder: Path, *, kills: int, steps: int, seed: int = 0, longest: float = 1.2
) -> dict[str, Any]:
    """Kill `kills` times, then let it finish; compare with a run of its own that nobody kills.

    Returns:
        How often a kill left a part of a file (it struck a save), and steps that were done twice.
    """
    rng = random.Random(seed)
    whole = Run(session, family, folder / "whole", steps, folder=folder, name="whole")
    killed, found = folder / "killed", Counter[str]()
    diary = killed / "diary0"
    for _ in range(kills):
        run = Run(session, family, killed, steps, folder=folder, name="killed")
        lines = _lines(diary)
        if rng.random() < 0.8:
            # most rounds are killed at work, the others anywhere, in their start too
            until(partial(_goes_on, run, diary, lines), 3600)  # a starved machine is no fault
        time.sleep(rng.uniform(0, 0.2) if rng.random() < 0.8 else rng.uniform(0, longest))
        assert run.process.is_alive(), f"it ended before it was killed: {run.said}"
        run.kill()
        run.process.join()
        found["in a save"] += (killed / ".last.ckpt.part").exists()
        last = killed / "last.ckpt"
        if last.exists():
            assert fault(last) is None, "a checkpoint under its own name is torn"
        elif previous(last).exists():
            assert fault(previous(last)) is None
            found["between the renames"] += 1
        else:
            found["before the first save"] += 1
    end = Run(session, family, killed, steps, folder=folder, name="killed")
    assert end.result(3600) == whole.result(3600) == steps
    done = curve(killed)
    assert done == curve(folder / "whole")
    assert len(done) == steps
    assert digest(killed / "last.ckpt") == digest(folder / "whole" / "last.ckpt")
    found["kills"] += kills
    found["steps"] += steps
    found["steps done twice"] += _lines(diary) - steps
    return dict(found)


def _goes_on(run: Run, diary: Path, lines: int) -> bool:
    return not run.process.is_alive() or _lines(diary) > lines


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--kills", type=int, default=25, help="kills of one run")
    parser.add_argument("--families", nargs="*", default=sorted(SETUPS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    # a run of this script that was stopped goes on
    text = json.loads(options.out.read_text()) if options.out.exists() else {}
    results: dict[str, dict[str, int]] = text.get("families", {})
    done = text.get("kills", 0)
    while done < options.rounds:
        family = options.families[done // options.kills % len(options.families)]
        with tempfile.TemporaryDirectory() as folder:
            found = rounds(family, Path(folder), kills=options.kills, steps=150, seed=done)
        results[family] = dict(Counter(results.get(family, {})) + Counter(found))
        done += options.kills
        text = {
            "kills": done,
            "corrupt checkpoints": 0,  # the first one, or a curve that differs, ends the script
            "runs that differ from an undisturbed one": 0,
            "families": results,
            "torch": torch.__version__,
        }
        options.out.write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    main()
