"""Shards from the writer to the loader: what goes in comes out, once."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset
from films import MakeFilm, index_of
from PIL import Image

from zoo.data import cutting, shard_writer
from zoo.data.batch import Batch, Sample
from zoo.data.buckets import Buckets
from zoo.data.container import Encoded
from zoo.data.datamodule import EpochSampler, ZooDataModule
from zoo.data.reader import FrameReader
from zoo.data.shard_source import ShardSource
from zoo.data.shard_writer import ShardSettings, shard_folder
from zoo.data.storage import Patience
from zoo.errors import RunError, UserError

QUICK = Patience(attempts=2, timeout=5, pause=0.01)


def picture(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """37 pictures in 8 shards."""
    for number in range(37):
        picture(tmp_path / "pictures" / f"p{number}.bmp", number)
    shard_folder(tmp_path / "pictures", tmp_path / "shards", ShardSettings(shard_mb=0.0075))
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 8
    return tmp_path / "shards"


def opened(root: Path | str, **settings: object) -> ShardSource:
    given = {"frames": 1, "size": 16, "patience": QUICK, "max_broken": 0.0}
    source = ShardSource(str(root), **{**given, **settings})  # type: ignore[arg-type]
    source.prepare()
    return source


def keys_of_epoch(
    source: ShardSource, *, epoch: int, rank: int, ranks: int, workers: int, batch: int = 2
) -> list[str]:
    data = ZooDataModule(source, batch_size=batch, num_workers=workers, seed=3)
    data._ranks = lambda: (rank, ranks)  # type: ignore[method-assign]
    loader = data.train_dataloader()
    assert isinstance(loader.sampler, EpochSampler)
    loader.sampler.set_epoch(epoch)
    return [key for one in loader for key in one.key]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 2), (3, 0), (5, 1)])
def test_no_sample_is_lost_or_doubled(pictures: Path, ranks: int, workers: int) -> None:
    """Counted over ranks x workers x epochs; what fills no batch on all ranks opens the next."""
    source = opened(pictures)
    steps = 37 // (2 * ranks)
    drawn: list[str] = []
    for epoch in range(4):
        parts = [
            keys_of_epoch(source, epoch=epoch, rank=rank, ranks=ranks, workers=workers)
            for rank in range(ranks)
        ]
        assert {len(part) for part in parts} == {2 * steps}, "all ranks take as many steps"
        drawn += [key for turn in zip(*parts, strict=True) for key in turn]
    passes = [drawn[start : start + 37] for start in range(0, len(drawn), 37)]
    assert len(passes) == 4
    assert len(passes[-1]) == 4 * 2 * ranks * steps - 3 * 37
    assert all(len(set(one)) == len(one) for one in passes), "nothing is doubled in a pass"
    assert all(set(one) == set(passes[0]) for one in passes[:3]), "nothing is lost in one"
    assert passes[0] != passes[1] != passes[2]
    counts = Counter(drawn)
    assert len(counts) == 37
    assert max(counts.values()) - min(counts.values()) <= 1


def test_evaluation_sees_everything_once_in_order(pictures: Path) -> None:
    source = opened(pictures, train=False)
    for ranks in (1, 2, 3):
        parts = [list(EpochSampler(len(source), rank=r, ranks=ranks)) for r in range(ranks)]
        keys = [source[item].key for part in parts for item in part]
        assert sorted(keys) == sorted(set(keys))
        assert len(keys) == 37


def test_each_rank_has_shards_of_its_own(pictures: Path) -> None:
    source = opened(pictures, shuffle=4)
    order = source.order(np.random.default_rng(0), chunk=8, ranks=4)
    shards = [set(source._table.shard[order[rank::4]].tolist()) for rank in range(4)]
    shared = sum(len(a & b) for i, a in enumerate(shards) for b in shards[i + 1 :])
    assert shared <= 3, "only the shard on the border between two ranks is read by both"
    assert sorted(order.tolist()) == list(range(37))
    still = opened(pictures, shuffle=0).order(np.random.default_rng(0), chunk=1, ranks=1)
    assert all(np.diff(still[source._table.shard[still] == s]).tolist() == [1] * 4 for s in (0, 1))


def test_a_stopped_epoch_goes_on_where_it_was(pictures: Path) -> None:
    source = opened(pictures)
    order = partial(source.order, chunk=4, ranks=2)
    for rank in (0, 1):
        make = partial(EpochSampler, 37, chunk=4, shuffle=True, seed=1, rank=rank, ranks=2)
        whole = make(order=order)
        epochs = []
        for epoch in (2, 3):
            whole.set_epoch(epoch)
            epochs.append(list(whole))
        rest = list(make(order=order, used=lambda: 2 * 36 + 12))
        assert len(rest) == 18
        assert rest == (epochs[0] + epochs[1])[6:24]


def test_resampling_draws_with_replacement(pictures: Path) -> None:
    source = opened(pictures, resample=200)
    assert len(source) == 200
    keys = keys_of_epoch(source, epoch=0, rank=0, ranks=1, workers=0)
    assert len(keys) == 200
    counts = Counter(keys)
    assert set(counts.values()) != {200 // 37}
    assert max(counts.values()) > 6
    assert keys != keys_of_epoch(source, epoch=1, rank=0, ranks=1, workers=0)


def test_webdataset_reads_what_we_write(pictures: Path) -> None:
    urls = sorted(str(path) for path in pictures.glob("*.tar"))
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(theirs) == 37
    ours = opened(pictures, train=False, short_side=20, size=20)
    for sample, mine in zip(theirs, (ours[i] for i in range(37)), strict=True):
        rgb = np.asarray(Image.open(io.BytesIO(sample["bmp"])))[:, 2:22]
        assert np.array_equal(
            ((mine.pixels[:, 0] + 1) * 127.5).round().byte().permute(1, 2, 0), rgb
        )
        assert mine.key.endswith(sample["__key__"])


def test_we_read_what_webdataset_writes(tmp_path: Path, make_film: MakeFilm) -> None:
    film = make_film(tmp_path / "a.mp4", frames=20).read_bytes()
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as out:
        out.write({"__key__": "a/x", "png": Image.new("RGB", (20, 20), "red"), "txt": "red"})
        out.write({"__key__": "film", "mp4": film, "json": {"caption": "grey", "n": 1}})
        out.write({"__key__": "no-media", "txt": "nothing to see"})
    source = opened(tmp_path / "theirs.tar", train=False, flip=False)
    found = {sample.key: sample.prompt for sample in (source[i] for i in range(len(source)))}
    assert found == {"theirs.tar/a/x": "red", "theirs.tar/film@0.000": "grey"}
    again = opened(tmp_path / "theirs.tar", train=False)  # from the cached index
    assert [again[i].key for i in range(2)] == [source[i].key for i in range(2)]


class Ranges(SimpleHTTPRequestHandler):
    """A server of parts of files that fails `broken` times, and never answers for `dead`."""

    broken = 0
    dead: tuple[str, ...] = ()
    served: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.endswith(self.dead) and self.dead:
            threading.Event().wait(1.5)
            return
        if Ranges.broken > 0:
            Ranges.broken -= 1
            self.send_error(503)
            return
        path = Path(self.directory) / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, span = path.read_bytes(), self.headers.get("Range")
        status, first, last = 200, 0, len(data) - 1
        if span is not None:
            low, _, high = span.removeprefix("bytes=").partition("-")
            status, first, last = 206, int(low), min(int(high or last), last)
        part = data[first : last + 1]
        Ranges.served.append(f"{self.path} {len(part)}")
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    servers = []
    Ranges.broken, Ranges.dead, Ranges.served = 0, (), []

    def start(folder: Path) -> str:
        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """The client may be gone."""

        server = Server(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


def same(one: Sample, two: Sample) -> bool:
    return one.key == two.key and torch.equal(one.pixels, two.pixels)


def test_shards_behind_http(pictures: Path, serve: Callable[[Path], str]) -> None:
    address = serve(pictures)
    far, near = opened(address, train=False), opened(pictures, train=False)
    assert len(far) == 37
    assert all(same(far[i], near[i]) for i in (0, 5, 36))
    assert not any(int(line.split()[1]) > 2000 for line in Ranges.served if ".tar" in line)
    for path in pictures.glob("*.json"):
        path.unlink()
    bare = opened(f"{address}/{{000000..000002}}.tar", train=False)
    assert same(bare[4], near[4])


def test_shards_in_memory_of_fsspec(pictures: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for path in pictures.iterdir():
        system.pipe_file(f"/set/{path.name}", path.read_bytes())
    far, near = opened("memory://set", train=False), opened(pictures, train=False)
    assert len(far) == len(near)
    assert same(far[7], near[7])


def test_a_failing_shard_is_tried_again(pictures: Path, serve: Callable[[Path], str]) -> None:
    source = opened(serve(pictures), train=False)
    Ranges.broken = 1
    assert source[3].key == opened(pictures, train=False)[3].key
    assert Ranges.broken == 0
    assert not source.broken


def test_a_slow_shard_is_left_out_and_named(
    pictures: Path, serve: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    patience = Patience(attempts=2, timeout=0.4, pause=0.01)
    source = opened(serve(pictures), train=False, patience=patience, max_broken=0.5)
    Ranges.dead = ("000001.tar",)
    keys = [source[i].key for i in range(37)]
    assert not any(key.startswith("000001.tar") for key in keys)
    assert len(keys) == 37
    assert "000001.tar is left out from now on" in caplog.text
    assert "no answer within 0.4 s" in caplog.text
    assert caplog.text.count("left out") == 1, "it is given up once, not for every sample"
    assert source.broken["000001.tar"] == "failed when read"
    source.max_broken = 0.05
    with pytest.raises(RunError, match=r"5 of 37 samples .* are lost.*000001\.tar"):
        source.check()


def test_shards_missing_or_damaged_at_the_start(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "000002.tar").write_bytes((pictures / "000002.tar").read_bytes()[:700])
    (pictures / "000003.json").write_text("{}")
    with pytest.raises(RunError, match=r"of 37 samples .* are lost"):
        opened(pictures)
    source = opened(pictures, train=False, max_broken=0.5)
    assert "000003.json is no index" in caplog.text
    assert "000003.tar" in source.broken
    keys = [source[i].key for i in range(len(source))]
    assert "000002.tar" in source.broken  # found out when it was read
    assert not any(key.startswith("000003") for key in keys)


def test_one_flipped_bit_is_noticed(pictures: Path) -> None:
    source = opened(pictures, train=False, max_broken=0.5)
    member = source._table.media(0)
    data = bytearray((pictures / "000000.tar").read_bytes())
    data[member.offset + member.size // 2] ^= 1
    (pictures / "000000.tar").write_bytes(data)
    assert source[0].key != "000000.tar/000000"
    assert "CRC-32" in source.broken["000000.tar/000000"]


def films(tmp_path: Path, make_film: MakeFilm) -> Path:
    folder = tmp_path / "films"
    make_film(folder / "a.mp4", frames=40)
    make_film(folder / "sub" / "b.mkv", frames=25, width=32, height=48)
    (folder / "a.txt").write_text("a grey film\n")
    (folder / "broken.mp4").write_text("no film")
    (folder / "sub" / "captions.jsonl").write_text('{"file": "b.mkv", "text": "upright"}\n')
    return folder


def test_clips_of_films(tmp_path: Path, make_film: MakeFilm) -> None:
    root = films(tmp_path, make_film)
    made = shard_folder(root, tmp_path / "out", ShardSettings(clip_seconds=0.5))
    assert list(made["broken"]) == ["broken.mp4"]
    assert made["clips_copied"] + made["clips_encoded"] == made["samples"] == 4
    source = opened(tmp_path / "out", train=False, frames=5, max_broken=0.5)
    samples = [source[i] for i in range(len(source))]
    shown = [
        [index_of(float(v)) for v in (s.pixels.mean(dim=(0, 2, 3)) + 1) * 127.5] for s in samples
    ]
    assert all(np.diff(indices).tolist() == [1] * 4 for indices in shown)
    assert len({(s.prompt, tuple(i)) for s, i in zip(samples, shown, strict=True)}) == len(samples)
    assert Counter(s.prompt for s in samples) == {"a grey film": 6, "upright": 5}
    train = opened(tmp_path / "out", frames=5, rate=12.5, max_broken=0.5)
    again = opened(tmp_path / "out", frames=5, rate=12.5, max_broken=0.5)
    assert same(train[(3, 1)], again[(3, 1)])
    assert train[(3, 1)].pixels.shape == (3, 5, 16, 16)
    with pytest.raises(UserError, match=r"nothing in .* has 90 frames"):
        opened(tmp_path / "out", frames=90)
    with pytest.raises(UserError, match="size 99 is larger than everything"):
        opened(tmp_path / "out", frames=5, size=99)


def frames_of(data: Path | Encoded) -> list[np.ndarray]:
    return [frame.rgb for frame in FrameReader(data)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_copied_clips_have_every_frame_bit_for_bit(
    suffix: str, tmp_path: Path, encode: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (32, 48, 3), np.uint8)
    path = encode(tmp_path / f"a{suffix}", [np.roll(base, i, 1) for i in range(75)], gop=12)
    pieces = cutting.plan(path, seconds=1.0)
    assert len(pieces) == 2
    assert all(piece.copied for piece in pieces)
    clips = list(cutting.cut(path, pieces))
    assert all(clip.copied for clip in clips)
    found = [rgb for clip in clips for rgb in frames_of(Encoded("clip", clip.data))]
    whole = frames_of(path)
    assert len(found) == len(whole) == 75
    assert all(np.array_equal(a, b) for a, b in zip(found, whole, strict=True))
    assert [clip.info.frames for clip in clips] == [36, 39]


def test_films_without_key_frames_are_encoded_anew(
    tmp_path: Path, encode: Callable[..., Path]
) -> None:
    """One group of pictures of 4 s, uneven time stamps: no frame is lost or doubled."""
    images = [np.full((32, 48, 3), 12 + 2 * i, np.uint8) for i in range(100)]
    stamps = [40 * i + (7 if i % 3 else 0) for i in range(100)]
    path = encode(tmp_path / "a.mp4", images, gop=1000, stamps=stamps)
    clips = list(cutting.cut(path, cutting.plan(path, seconds=1.0)))
    assert len(clips) == 4
    assert not any(clip.copied for clip in clips)
    greys = [rgb.mean() for clip in clips for rgb in frames_of(Encoded("clip", clip.data))]
    assert len(greys) == 100
    assert np.abs(np.array(greys) - (12 + 2 * np.arange(100))).max() <= 1


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_stop_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        picture(tmp_path / "pictures" / f"p{number}.bmp", number)
    run = partial(shard_folder, tmp_path / "pictures", settings=ShardSettings(shard_mb=0.006))
    run(out=tmp_path / "whole")
    whole = files_in(tmp_path / "whole")
    assert len([name for name in whole if name.endswith(".tar")]) == 3
    assert not [name for name in whole if name.startswith(".")]
    real = os.replace
    for stop in range(1, 11):
        calls = iter(range(stop))

        def replace(*args: object, calls: Iterator[int] = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            real(*args)  # type: ignore[arg-type]

        out = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", replace)
            with pytest.raises(KeyboardInterrupt):
                run(out=out)
        written: list[object] = []
        add = shard_writer._add

        def count(*args: object, written: list[object] = written, add: object = add) -> object:
            written.append(args)
            return add(*args)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(shard_writer, "_add", count)
            run(out=out)
        assert files_in(out) == whole
        if stop >= 5:
            assert len(written) < 12, "shards that were finished are kept"


def test_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / "pictures" / f"p{number}.bmp", number)
    settings = ShardSettings(shard_mb=0.006)
    shard_folder(tmp_path / "pictures", tmp_path / "one", settings)
    shard_folder(tmp_path / "pictures", tmp_path / "two", settings, workers=2)
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    manifest = json.loads((tmp_path / "one" / "shards.json").read_text())
    for one in manifest["shards"]:
        data = (tmp_path / "one" / one["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == one["sha256"]


def test_mistakes_of_the_writer(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match=r"no folder or file at .*nowhere"):
        shard_folder(tmp_path / "nowhere", tmp_path / "o", ShardSettings())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no file whose name ends in .*\.png"):
        shard_folder(tmp_path / "empty", tmp_path / "o", ShardSettings())
    with pytest.raises(UserError, match="shards of another source or other settings"):
        shard_folder(tmp_path / "pictures", pictures, ShardSettings(shard_mb=7))
    with pytest.raises(UserError, match="clips of -1 s"):
        ShardSettings(clip_seconds=-1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no picture")
    with pytest.raises(RunError, match=r"none of the 1 files .*a\.png"):
        shard_folder(tmp_path / "bad", tmp_path / "o2", ShardSettings())


def test_mistakes_of_the_source(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match=r"no shards\.json and no \.tar in"):
        opened(tmp_path / "pictures")
    with pytest.raises(UserError, match="unbalanced braces"):
        opened(f"{tmp_path}/{{0..3.tar")
    with pytest.raises(UserError, match=r"can't be opened .*nosuch"):
        opened("nosuch://bucket/a.tar")
    with pytest.raises(RunError, match=r"none of 1 shards .*gone\.tar"):
        opened(tmp_path / "gone.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    with pytest.raises(RunError, match="no plain tar archive"):
        opened(tmp_path / "packed.tar")
    for settings, said in (
        ({"frames": 0}, "frames=0"),
        ({"shuffle": -1}, "shuffle=-1"),
        ({"resample": 0}, "resample=0"),
        ({"train": False, "resample": 5}, "are for training"),
    ):
        with pytest.raises(UserError, match=said):
            ShardSource(str(pictures), **settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="attempts=0"):
        Patience(attempts=0)


def test_buckets_of_aspects_and_lengths(tmp_path: Path, make_film: MakeFilm) -> None:
    for number in range(9):
        size = [(48, 32), (32, 48), (40, 40)][number % 3]
        picture(tmp_path / "data" / f"p{number}.png", number, size)
    for number in range(6):
        make_film(tmp_path / "data" / f"f{number}.mp4", frames=9 if number % 2 else 20)
    shard_folder(tmp_path / "data", tmp_path / "out", ShardSettings(shard_mb=0.01))
    buckets = Buckets(32, frames=(1, 5, 17), ratios=(2 / 3, 1, 3 / 2), multiple=8)
    assert set(buckets.shapes) == {
        (t, *side) for t in (1, 5, 17) for side in ((40, 24), (32, 32), (24, 40))
    }
    source = opened(tmp_path / "out", buckets=buckets)
    data = ZooDataModule(source, batch_size=3, num_workers=1)
    batches: list[Batch] = list(data.train_dataloader())
    shapes = Counter(tuple(batch.pixels.shape[2:]) for batch in batches)
    assert shapes == {
        (1, 24, 40): 1,
        (1, 40, 24): 1,
        (1, 32, 32): 1,
        (5, 24, 40): 1,
        (17, 24, 40): 1,
    }
    keys = [key.partition("@")[0] for batch in batches for key in batch.key]
    assert len(keys) == len(set(keys)) == 15
    for batch in batches:
        assert batch.pixels.abs().max() <= 1


def test_bucket_batches_over_ranks(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "data" / f"p{number}.png", number, (48, 32) if number % 5 else (32, 48))
    shard_folder(tmp_path / "data", tmp_path / "out", ShardSettings(shard_mb=0.002))
    source = opened(tmp_path / "out", buckets=Buckets(32, frames=(1,), multiple=8))
    chunk = 6
    order = source.order(np.random.default_rng(0), chunk=chunk, ranks=2)
    assert len(order) == source.length(chunk) == 36
    assert len(set(order.tolist())) == 36
    for batch in order.reshape(-1, chunk):
        assert len(set(source._bucket[batch].tolist())) == 1


@pytest.mark.parametrize("resample", [None, 40])
def test_bucket_batches_over_passes(tmp_path: Path, resample: int | None) -> None:
    """Every batch of all ranks has one shape, in each pass and after a stop, by whatever batch."""
    for number in range(40):
        picture(tmp_path / "data" / f"p{number}.png", number, (48, 32) if number % 5 else (32, 48))
    shard_folder(tmp_path / "data", tmp_path / "out", ShardSettings(shard_mb=0.002))
    buckets = Buckets(32, frames=(1,), multiple=8)
    source = opened(tmp_path / "out", buckets=buckets, resample=resample)
    assert source.in_chunks
    parts = []
    for rank in range(2):
        data = ZooDataModule(source, batch_size=3, seed=3)
        data._ranks = lambda rank=rank: (rank, 2)  # type: ignore[method-assign, misc]
        loader = data.train_dataloader()
        part: list[Batch] = []
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            part += loader
        parts.append(part)
    assert len(parts[0]) == len(parts[1]) == 3 * 6
    for both in zip(*parts, strict=True):
        assert len({tuple(batch.pixels.shape) for batch in both}) == 1
    if resample is None:
        for begin in range(0, 18, 6):
            keys = [k for part in parts for batch in part[begin : begin + 6] for k in batch.key]
            assert len(set(keys)) == len(keys) == 36
    assert len({tuple(batch.pixels.shape) for batch in parts[0]}) == 2


def test_buckets_resumed_with_another_batch_size(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "data" / f"p{number}.png", number, (48, 32) if number % 5 else (32, 48))
    shard_folder(tmp_path / "data", tmp_path / "out", ShardSettings(shard_mb=0.002))
    source = opened(tmp_path / "out", buckets=Buckets(32, frames=(1,), multiple=8))
    data = ZooDataModule(source, batch_size=4)
    progress = SimpleNamespace(total=SimpleNamespace(processed=3))
    epochs = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(fit_loop=epochs, global_rank=0, world_size=1)  # type: ignore[assignment]
    data.load_state_dict({"used": 9})  # three batches of 3
    loader = data.train_dataloader()
    assert data.state_dict() == {"used": 8}
    assert [len(batch.key) for batch in loader] == [4] * 10  # batches of one shape, else no stack


def test_mistakes_of_buckets(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    for settings, said in (
        ({"frames": ()}, "frames="),
        ({"ratios": (0.0,)}, "ratios="),
        ({"multiple": 64}, "multiple=64"),
    ):
        with pytest.raises(UserError, match=said):
            Buckets(32, **settings)  # type: ignore[arg-type]
    source = opened(pictures, buckets=Buckets(32, frames=(1,), multiple=8))
    assert source.length(50) == 0
    assert "never fill a batch of 50" in caplog.text
    for path in pictures.glob("*.json"):
        path.unlink()
    with pytest.raises(UserError, match="nobody measured"):
        opened(pictures, buckets=Buckets(32, frames=(1,), multiple=8))


def test_memory_is_flat(pictures: Path) -> None:
    """Nothing is kept of the samples: 40 epochs allocate no more than the first six."""
    import tracemalloc

    source = opened(pictures)
    for index in range(37):
        source[(0, index)]
    tracemalloc.start()
    for epoch in range(40):
        for index in range(37):
            source[(epoch, index)]
        if epoch == 5:
            early = tracemalloc.get_traced_memory()[0]
    late = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert late - early < 50_000


def test_a_config_trains_on_shards(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zoo.cli import train

    config = Path(__file__).parents[2] / "configs" / "smoke" / "kl_vae_image.yaml"
    given = ["fit", "--config", str(config), "--data.train", "zoo.data.shard_source.ShardSource"]
    options = {"root": pictures, "frames": 1, "size": 64, "buckets": "zoo.data.buckets.Buckets"}
    for name, value in (options | {"patience.attempts": 5, "buckets.size": 64}).items():
        name = name.replace("buckets.", "buckets.init_args.")
        given += [f"--data.train.init_args.{name}", str(value)]
    with pytest.raises(SystemExit) as stopped:
        train.main([*given, "--print_config"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert "zoo.data.shard_source.ShardSource" in shown
    assert "attempts: 5" in shown
    with pytest.raises(UserError, match="unknown key 'shufle': did you mean 'shuffle'"):
        train.main([*given, "--data.train.init_args.shufle", "3", "--print_config"])
