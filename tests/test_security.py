"""Input that means harm: nothing of it is run, written elsewhere, or given memory."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.benchmark.clips import shard_items
from zoo.cli import find, run
from zoo.data import limits, shards, storage
from zoo.data.container import Encoded, open_video
from zoo.data.film import open_film
from zoo.data.shard_source import ShardSource
from zoo.data.sources import ImageFolder
from zoo.data.storage import Patience
from zoo.data.writer import VideoWriter
from zoo.errors import UserError
from zoo.nets.pickles import load_pickle
from zoo.nets.pretrained import Pretrained
from zoo.open_pipeline import open_pipeline

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "zoo").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
QUICK = Patience(attempts=1, timeout=10, pause=0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of everything that a file calls."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str, str]:
    return {str(word.arg): ast.unparse(word.value) for word in call.keywords}


def test_nothing_in_the_tree_can_run_what_it_reads() -> None:
    """An audit of every call: pickles, shells, eval, unpacking, YAML with tags, foreign code."""
    forbidden = {
        *(
            "eval",
            "exec",
            "compile",
            "__import__",
            "os.system",
            "os.popen",
            "os.execv",
            "os.spawnv",
        ),
        *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"),
        *("torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load"),
        *("subprocess.getoutput", "subprocess.call", "tempfile.mktemp", "shutil.unpack_archive"),
    }
    found = []
    for path in SOURCES:
        for name, call in calls(path):
            given = keywords(call)
            bad = name in forbidden
            bad |= name.endswith((".extractall", ".extract"))
            bad |= name == "torch.load" and given.get("weights_only") != "True"
            bad |= (
                name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False"
            )
            bad |= given.get("shell", "False") != "False"
            bad |= given.get("trust_remote_code", "False") != "False"
            bad |= name == "Image.open" and "formats" not in given
            bad |= name == "av.open" and given.get("options") != "_OPTIONS" and not _writes(call)
            if bad:
                found.append(f"{path.relative_to(ROOT)}:{call.lineno} {name}")
    assert not found


def _writes(call: ast.Call) -> bool:
    return len(call.args) > 1 and ast.unparse(call.args[1]) == "'w'"


def test_programs_are_started_from_lists_alone() -> None:
    """pip of the pinned table, SLURM's requeue and our own timing worker, none through a shell."""
    starts = sorted(
        (path.relative_to(ROOT).as_posix(), ast.unparse(call.args[0]))
        for path in SOURCES
        for name, call in calls(path)
        if name.startswith("subprocess.")
    )
    assert starts == [
        ("zoo/assets.py", "command"),
        ("zoo/cli/slurm.py", "['scontrol', 'requeue', job]"),
        (
            "zoo/metrics/tokenizer_speed.py",
            "[sys.executable, '-m', 'zoo.metrics.tokenizer_speed', json.dumps(config)]",
        ),
    ]
    assets = (ROOT / "zoo" / "assets.py").read_text()
    assert 'command, log = [sys.executable, "-m", "pip", *arguments], ' in assets


class Evil:
    """Unpickled carelessly it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("old", [False, True])
def test_pickles_run_nothing(tmp_path: Path, old: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    if old:
        path.write_bytes(pickle.dumps({"a": Evil(mark)}, protocol=2))
    else:
        torch.save({"state_dict": {"a": Evil(mark)}}, path)
    with pytest.raises(UserError, match=r"asks for \w+\.system.*nothing of it was run"):
        load_pickle(path)
    with pytest.raises(UserError, match="nothing of it was run"):
        load_pickle(path, device="meta")
    assert not mark.exists()


@pytest.mark.parametrize("new", [False, True])
def test_pickles_cut_off_anywhere_are_refused(tmp_path: Path, new: bool) -> None:
    """In one sentence: among the ends are those in the middle of a number's or a name's bytes."""
    whole, path = tmp_path / "whole.ckpt", tmp_path / "cut.ckpt"
    content = {"state_dict": {"a.weight": torch.zeros(3)}, "names": ("one", "two"), "step": 70_000}
    torch.save(content, whole, _use_new_zipfile_serialization=new)
    data = whole.read_bytes()
    for end in range(0, len(data), 7 if new else 1):
        path.write_bytes(data[:end])
        # a name that is cut off is another name
        with pytest.raises(UserError, match=r"is not a whole checkpoint|asks for \w") as refused:
            load_pickle(path)
        assert "\n" not in str(refused.value)


def test_resuming_from_a_foreign_checkpoint_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "ran"
    torch.save({"state_dict": {}, "loops": Evil(mark)}, tmp_path / "evil.ckpt")
    config = ROOT / "configs" / "smoke" / "kl_vae_image.yaml"
    with pytest.raises(SystemExit) as stopped:
        run(find("train"), ["fit", "--config", str(config), "--ckpt_path", "evil.ckpt"])
    assert stopped.value.code == 2
    assert "nothing of it was run" in capsys.readouterr().err
    assert not mark.exists()


def test_yaml_without_bottom_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "deep.yaml"
    config.write_text("trainer: " + "[" * 4000)
    with pytest.raises(SystemExit) as stopped:
        run(find("train"), ["fit", "--config", str(config), "--print_config"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Problems parsing config")
    assert said.count("\n") == 1


def test_yaml_makes_no_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Classes come in by `class_path` alone: a config is the user's own code, tags are not."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "evil.yaml"
    config.write_text('seed_everything: !!python/object/apply:os.system ["touch ran"]\n')
    with pytest.raises(SystemExit) as stopped:
        run(find("train"), ["fit", "--config", "evil.yaml"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") <= 2
    assert not (tmp_path / "ran").exists()


def test_a_model_folder_names_no_class(tmp_path: Path) -> None:
    """`architecture` is looked up among the nets of the zoo; it is never imported."""
    for name in ("os.system", "builtins.eval", "zoo.nets.cdt.CDT", "__main__", "../cdt"):
        content = {"architecture": name, "config": {}}
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="which this version doesn't know"):
            Pretrained.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "cdt", "config": {"class_path": "os"}}')
    with pytest.raises(UserError, match="unknown key 'class_path'"):
        Pretrained.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "named",
    [
        ["os", "system"],
        ["subprocess", "Popen"],
        ["diffusers", "pipeline"],
        ["evil", "DDIMScheduler"],
    ],
)
def test_a_pipeline_folder_names_only_classes_of_its_own(tmp_path: Path, named: list[str]) -> None:
    content = {"_class_name": "StableDiffusionPipeline", "vae": named}
    (tmp_path / "model_index.json").write_text(json.dumps(content))
    (tmp_path / "unet").mkdir()
    with pytest.raises(UserError, match=f"wants {named[0]}.{named[1]} for its vae.*do not trust"):
        open_pipeline(f"dir:{tmp_path}")


def tar_with(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    """A tar of (name, content, type)."""
    with tarfile.open(path, "w") as box:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.size, info.linkname = 0, "/etc/passwd"
            box.addfile(info, io.BytesIO(content))
    return path


def png(size: tuple[int, int] = (16, 16)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, "PNG")
    return out.getvalue()


def test_archives_write_nothing_outside(tmp_path: Path) -> None:
    """Names with .. or / in front are keys like any other; links and devices are passed over."""
    inside = tmp_path / "inside"
    inside.mkdir()
    tar = tar_with(
        inside / "evil.tar",
        ("../../escaped.png", png(), tarfile.REGTYPE),
        (f"{tmp_path}/absolute.png", png(), tarfile.REGTYPE),
        ("link.png", b"", tarfile.SYMTYPE),
        ("hard.png", b"", tarfile.LNKTYPE),
        ("device.png", b"", tarfile.CHRTYPE),
    )
    source = ShardSource(str(tar), frames=1, size=16, train=False, patience=QUICK)
    source.prepare()
    assert len([source[i] for i in range(len(source))]) == 2
    items = list(shard_items([tar])())
    assert [item.key for item in items] == [
        "evil.tar/../../escaped.png",
        f"evil.tar/{tmp_path}/absolute.png",
    ]
    made = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert made <= {"inside", "cache"}


def test_a_list_of_shards_stays_in_its_folder(tmp_path: Path) -> None:
    for name in ("../a.tar", "/etc/a.tar", "https://elsewhere/a.tar", "a.tar\n", "", "pipe:ls.tar"):
        item = {"name": name, "samples": 1, "sha256": "", "index_sha256": ""}
        content = {"format": 1, "samples": 1, "shards": [item], "broken": {}}
        (tmp_path / "shards.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"not a plain name|no list of shards"):
            shards.find_shards(str(tmp_path), QUICK)


def test_addresses_run_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WebDataset's own opener runs `pipe:COMMAND` in a shell; here it is a path like any other."""
    monkeypatch.chdir(tmp_path)
    for address in ("pipe:touch ran #.tar", "pipe://touch ran.tar", "; touch ran.tar"):
        source = ShardSource(address, frames=1, patience=QUICK)
        with pytest.raises((UserError, RuntimeError)):
            source.prepare()
    assert not list(tmp_path.glob("ran*"))


def png_that_says(width: int, height: int) -> bytes:
    """A few bytes that claim a picture of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 11_500), (2**31 - 1, 2**31 - 1)])
def test_pictures_are_measured_before_they_are_decoded(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_that_says(*size))
    before = peak_mb()
    with pytest.raises(UserError, match=r"pixels"):
        open_film(path)
    with pytest.raises((UserError, RuntimeError), match="pixels"):
        ImageFolder(str(path), size=8).prepare()
    assert peak_mb() - before < 100


def test_films_are_measured_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = b"YUV4MPEG2 W30000 H30000 F25:1 Ip A1:1 C420jpeg\nFRAME\n"
    path = _saved(tmp_path / "bomb.avi", header + bytes(3000))
    before = peak_mb()
    with pytest.raises(UserError, match=r"30000x30000 pixels|can't be read|no frame|no film"):
        open_film(path)
    assert peak_mb() - before < 100
    film = film_at(tmp_path / "film.mp4")
    monkeypatch.setattr(limits, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match=r"film\.mp4 says it has 48x32 pixels, more than the 1,000"):
        open_film(film)
    with pytest.raises(UserError, match="48x32 pixels"):
        open_video(Encoded("film", film.read_bytes()))


def film_at(path: str | Path) -> Path:
    """One frame of 48x32."""
    with VideoWriter(path, width=48, height=32, rate=Fraction(25)) as writer:
        writer.write(np.zeros((32, 48, 3), np.uint8))
    return Path(path)


def _saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_frames_that_grow_within_a_film_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder itself is held to the limit, whatever the container's header says."""
    from zoo.data import container

    assert container._OPTIONS["max_pixels"] == str(limits.MAX_PIXELS)
    film = tmp_path / "a.mkv"
    film_at(film)
    monkeypatch.setattr(container, "MAX_PIXELS", 1000)
    monkeypatch.setattr(container, "check_pixels", lambda *_: None)
    opened, stream = open_video(film)
    with opened, pytest.raises(Exception, match=r"Invalid argument|max_pixels"):
        list(opened.decode(stream))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{film}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {film}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    ],
    ids=["hls", "concat", "sdp"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ts"])
def test_playlists_are_no_films(tmp_path: Path, text: str, suffix: str) -> None:
    """FFmpeg would open the files and addresses that they name."""
    film_at(tmp_path / "secret.mp4")
    path = tmp_path / f"list{suffix}"
    path.write_text(text.format(film=tmp_path / "secret.mp4"))
    with pytest.raises(UserError, match=r"can't be read as a film|no film|cut off"):
        open_video(path)
    with pytest.raises(UserError):
        open_video(Encoded("list", path.read_bytes()))


def test_file_names_are_no_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """concat:a.mp4 in the working folder is a file; FFmpeg would take it for two."""
    monkeypatch.chdir(tmp_path)
    film_at("concat:a.mp4")
    with open_film("concat:a.mp4") as film:
        assert len(list(film)) == 1


def test_members_of_shards_are_measured_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tar_with(tmp_path / "a.tar", ("a.png", png((64, 64)), tarfile.REGTYPE))
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", 50)
    with tar.open("rb") as file, pytest.raises(UserError, match=r"a\.png .* more than the 50"):
        shards.scan(file, tar)
    huge = bytearray(tar.read_bytes())
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 40
    huge[:512] = info.tobuf(tarfile.GNU_FORMAT)
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", 1 << 50)
    with pytest.raises(RuntimeError, match=r"is cut off in a\.png"):
        shards.scan(io.BytesIO(huge), "huge.tar")


def test_an_index_is_held_to_sizes(tmp_path: Path) -> None:
    path = _saved(tmp_path / "a.json", b"x" * 100)
    with pytest.raises(OSError, match="100 bytes, more than the 10"):
        storage.read_whole(str(path), limit=10)


SECRET = "hf_SecretTokenThatMustNotLeak"


def test_tokens_are_never_written_or_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole training run with tokens in the environment leaves them nowhere."""
    names = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")
    env = os.environ | dict.fromkeys(names, SECRET) | {"PYTHONPATH": str(ROOT)}
    config = ROOT / "configs" / "smoke" / "kl_vae_image.yaml"
    (tmp_path / "films").mkdir()
    for number in range(2):
        rng = np.random.default_rng(number)
        film = tmp_path / "films" / f"{number}.mp4"
        with VideoWriter(film, width=64, height=64, rate=Fraction(25)) as writer:
            for _ in range(8):
                writer.write(rng.integers(0, 256, (64, 64, 3), np.uint8))
    given = ["fit", "--config", str(config), "--out", "out", "--trainer.max_steps", "2"]
    given += ["--evaluate", "false", "--data.batch_size", "2"]
    for part in ("train", "val"):
        given += [f"--data.{part}.init_args.root", str(tmp_path / "films")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train.py"), *given],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "last.ckpt").is_file()
    assert SECRET not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_tokens_stay_out_of_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    logging.getLogger().setLevel(logging.DEBUG)
    with pytest.raises(UserError) as error:
        zoo.load("cdt_tiny.nothing")
    assert SECRET not in str(error.value)
