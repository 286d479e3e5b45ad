"""Damages media, shards, checkpoints and configs at random and looks at what reading them does.

    python tools/fuzz.py --rounds 200
    python tools/fuzz.py --rounds 500 --start 500 --out runs/fuzz      # adds to what is there
    python tools/fuzz.py --rounds 1 --start 4711                       # that round again

A round is a function of (--seed, its number). It runs in a process of its own, with a time limit
and a memory limit. Allowed: a refusal (UserError or RunError), or a result that is whole. A finding
is a crash, another exception, a hang, growth, or silent success: something lost or changed that
nobody was told of, where the format lets it be known. Exit status 1 where there are findings.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_targets import TARGETS, FuzzTarget, make_seeds

SECONDS = 30.0
GROWTH = 1 << 30
"""Bytes by which a round may exceed what the process has before it."""

Edit = Callable[[bytearray, np.random.Generator], bytearray]


def flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Flip up to 8 bits."""
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        data[place] ^= 1 << int(rng.integers(8))
    return data


def noise(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Overwrite a stretch with random bytes."""
    first, count = int(rng.integers(len(data))), int(rng.integers(1, 257))
    part = rng.integers(0, 256, len(data[first : first + count]), dtype=np.uint8).tobytes()
    data[first : first + count] = part
    return data


def truncate(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Cut the end off."""
    return data[: int(rng.integers(len(data)))]


def remove(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Take a stretch out."""
    first = int(rng.integers(len(data)))
    del data[first : first + int(rng.integers(1, 1025))]
    return data


def repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Put a stretch in once more."""
    first, target = rng.integers(len(data), size=2)
    data[target:target] = data[first : first + int(rng.integers(1, 1025))]
    return data


def extreme(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Set a field of 1, 2, 4 or 8 bytes to a number that sizes and counts overflow at."""
    width = int(rng.choice([1, 2, 4, 8]))
    place = int(rng.integers(max(1, min(len(data), 4096)))) // width * width
    value = int(rng.choice([0, 1, 127, 255]))
    high = value << 8 * (width - 1)
    order = "big" if rng.random() < 0.5 else "little"
    all_ones = (1 << 8 * width) - 1
    number = int([0, all_ones, high, all_ones >> 1][int(rng.integers(4))])
    data[place : place + width] = number.to_bytes(width, order)
    return data


def token(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Replace a word or number of a text."""
    words = bytes(data).split(b" ")
    strange = (b"-1", b"0", b"1e999", b"NaN", b"null", b"[]", b"{}", b"18446744073709551616")
    strange += (b'"../../x"', b"!!python/object/apply:os.abort", b"\xff\xfe", b"[" * 4000, b"true")
    words[int(rng.integers(len(words)))] = strange[int(rng.integers(len(strange)))]
    return bytearray(b" ".join(words))


BINARY: tuple[Edit, ...] = (flip, noise, truncate, remove, repeat, extreme)
TEXT: tuple[Edit, ...] = (flip, truncate, remove, repeat, token, token, token)


def damage(path: Path, rng: np.random.Generator) -> str:
    """Change a file in one or two ways; says which."""
    edits = TEXT if path.suffix in (".json", ".yaml", ".jsonl") else BINARY
    data, done = bytearray(path.read_bytes()), []
    for _ in range(int(rng.integers(1, 3))):
        if data:
            edit = edits[int(rng.integers(len(edits)))]
            data = edit(data, rng)
            done.append(edit.__name__)
    path.write_bytes(data)
    return f"{path.name}: {', '.join(done)}"


def run_round(number: int, seed: int, seeds: Path, scratch: Path) -> dict[str, Any]:
    """One round: what was damaged, how it ended, and what is wrong with that (None: nothing)."""
    rng = np.random.default_rng((seed, number))
    target = TARGETS[int(rng.choice(len(TARGETS), p=[t.share for t in TARGETS]))]
    case = scratch / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(seeds / target.name, case)
    files = sorted(p for p in case.rglob("*") if p.is_file() and not p.name.startswith("_"))
    chosen = files[int(rng.integers(len(files)))]
    before = chosen.read_bytes()
    what = damage(chosen, rng)
    unchanged = chosen.read_bytes() == before
    result = in_child(target, case, chosen, unchanged)
    return {"round": number, "target": target.name, "damage": what, **result}


def in_child(target: FuzzTarget, case: Path, chosen: Path, unchanged: bool) -> dict[str, Any]:
    """Run the target in a fork of this process, held to time and memory."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _child(target, case, chosen, unchanged, writer)
    os.close(writer)
    said, end = b"", time.monotonic() + SECONDS
    hung = False
    while True:
        left = end - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            hung = True
            os.kill(child, signal.SIGKILL)
            break
        if not (part := os.read(reader, 1 << 16)):
            break
        said += part
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if hung:
        return {"ended": "hang", "finding": f"no end within {SECONDS:g} s"}
    if os.WIFSIGNALED(status):
        return {"ended": "crash", "finding": f"signal {os.WTERMSIG(status)}"}
    if not said:
        return {"ended": "crash", "finding": f"exit status {os.WEXITSTATUS(status)}"}
    result: dict[str, Any] = json.loads(said)
    return result


def _child(target: FuzzTarget, case: Path, chosen: Path, unchanged: bool, writer: int) -> None:
    from zoo.errors import RunError, UserError

    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    result: dict[str, Any]
    begin = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    try:
        finding = target.read(case, chosen, unchanged)
        result = {"ended": "read", "finding": finding}
    except (UserError, RunError) as error:
        text = str(error)
        wrong = "a refusal of several lines" if "\n" in text.strip() else None
        result = {"ended": "refused", "finding": wrong and f"{wrong}: {text[:300]}"}
    except BaseException:  # noqa: BLE001  (any other is what is looked for)
        result = {"ended": "exception", "finding": traceback.format_exc()[-1500:]}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - begin
    if grown > GROWTH and result["finding"] is None:
        result["finding"] = f"{grown / 2**20:.0f} MiB more than before"
    os.write(writer, json.dumps(result).encode())
    os._exit(0)


def main() -> int:
    """Fuzz; see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--start", type=int, default=0, help="the first round's number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder: result.json is added to, findings kept")
    options = parser.parse_args()
    began, counts, findings = time.monotonic(), Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="zoo-fuzz-") as folder:
        os.environ["ZOO_CACHE"] = str(Path(folder) / "cache")
        os.environ["ZOO_OFFLINE"] = "1"
        seeds, scratch = Path(folder) / "seeds", Path(folder) / "scratch"
        make_seeds(seeds)
        scratch.mkdir()
        gc.collect()
        gc.freeze()  # what children inherit isn't looked through, so that its pages stay shared
        for number in range(options.start, options.start + options.rounds):
            row = run_round(number, options.seed, seeds, scratch)
            counts[f"{row['target']} {row['ended']}"] += 1
            if row["finding"] is not None:
                findings.append(row)
                print(f"round {number}, {row['damage']}: {row['ended']}: {row['finding']}")
                if options.out is not None:
                    kept = options.out / f"round-{number}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(scratch / "case", kept)
    seconds = time.monotonic() - began
    if options.out is not None:
        _add(options.out / "result.json", options, counts, findings, seconds)
    print(f"{options.rounds} rounds, {len(findings)} findings, {seconds:.0f} s")
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count}")
    return int(bool(findings))


def _add(
    path: Path, options: Any, counts: Counter[str], findings: list[dict[str, Any]], seconds: float
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {"seed": options.seed, "rounds": [], "counts": {}, "findings": []}
    if path.is_file():
        known = json.loads(path.read_text())
    known["rounds"].append([options.start, options.start + options.rounds, round(seconds)])
    known["counts"] = dict(sorted((Counter(known["counts"]) + counts).items()))
    known["findings"] += findings
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
