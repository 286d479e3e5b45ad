from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from films import MakeFilm
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from zoo.data.batch import Batch
from zoo.data.datamodule import EpochSampler, ZooDataModule
from zoo.data.sources import VideoFolder
from zoo.errors import RunError, UserError


@pytest.fixture
def folder(tmp_path: Path, make_film: MakeFilm) -> Path:
    for name in "abc":
        make_film(tmp_path / "films" / f"{name}.mp4", frames=30)
    return tmp_path / "films"


def module(folder: Path, **settings: object) -> ZooDataModule:
    source = VideoFolder(str(folder), frames=5, size=16, clips_per_film=6, max_broken=0.4)
    val = VideoFolder(str(folder), frames=5, size=16, train=False)
    data = ZooDataModule(source, val=val, **{"batch_size": 4, **settings})
    data.prepare_data()
    data.setup("fit")
    return data


def epochs(data: ZooDataModule, count: int) -> list[list[Batch]]:
    loader = data.train_dataloader()
    result = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        result.append(list(loader))
    return result


def test_workers_change_nothing(folder: Path) -> None:
    alone, helped = epochs(module(folder), 2), epochs(module(folder, num_workers=2), 2)
    for one, two in zip(alone, helped, strict=True):
        assert [batch.key for batch in one] == [batch.key for batch in two]
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, two, strict=True))
    assert [batch.key for batch in alone[0]] != [batch.key for batch in alone[1]]
    assert [batch.pixels.shape for batch in alone[0]] == [(4, 3, 5, 16, 16)] * 4
    other = epochs(module(folder, seed=1), 1)
    assert [batch.key for batch in other[0]] != [batch.key for batch in alone[0]]


def test_validation_is_complete_and_ordered(folder: Path) -> None:
    keys = [key for batch in module(folder, val_batch_size=5).val_dataloader() for key in batch.key]
    assert keys == [f"{name}.mp4@{0.2 * i:.3f}" for name in "abc" for i in range(6)]


def test_ranks_are_disjoint_and_even() -> None:
    """Passes follow one another: what an epoch leaves opens the next, so that none is lost."""
    samplers = [EpochSampler(23, chunk=6, shuffle=True, rank=rank, ranks=2) for rank in range(2)]
    seen: list[tuple[int, int]] = []
    for epoch in range(23):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        first, second = (list(sampler) for sampler in samplers)
        assert len(first) == len(second) == len(samplers[0]) == 9
        seen += [pair for both in zip(first, second, strict=True) for pair in both]
    passes = len(seen) // 23
    assert passes == 18
    for number in range(passes):
        whole = seen[23 * number : 23 * (number + 1)]
        assert sorted(whole) == [(number, i) for i in range(23)]
    assert [i for _, i in seen[:23]] != [i for _, i in seen[23:46]]


def test_validation_of_more_ranks_than_samples() -> None:
    """Each clip in one rank; a rank without one repeats one, which the module doesn't count."""
    validation = [list(EpochSampler(7, rank=rank, ranks=2)) for rank in range(2)]
    assert validation == [[(0, 0), (0, 2), (0, 4), (0, 6)], [(0, 1), (0, 3), (0, 5)]]
    assert [list(EpochSampler(2, rank=rank, ranks=3)) for rank in range(3)] == [
        [(0, 0)],
        [(0, 1)],
        [(0, 0)],
    ]


def test_position_is_the_rest_of_the_order() -> None:
    """Also with another number of ranks than before."""
    whole = list(EpochSampler(40, chunk=40, shuffle=True))
    for ranks in (1, 2, 4):
        rest = [
            EpochSampler(40, chunk=8, shuffle=True, rank=rank, ranks=ranks, used=lambda: 16)
            for rank in range(ranks)
        ]
        pairs = [pair for rank in zip(*rest, strict=True) for pair in rank]
        assert pairs[:24] == whole[16:]
        assert {number for number, _ in pairs[24:]} == {1}


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[str]]] = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.seen.append((self.trainer.current_epoch, batch.key))
        return self.weight * batch.pixels.mean()

    def validation_step(self, batch: Batch, index: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, *, workers: int, resume: Path | None = None, callback: Callback | None = None
) -> list[tuple[int, list[str]]]:
    net = Recorder()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=callback is not None,
        callbacks=[] if callback is None else [callback],
    )
    data = module(folder, num_workers=workers)
    trainer.fit(net, datamodule=data, ckpt_path=resume, weights_only=False)
    return net.seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore")
def test_resumed_runs_see_the_same_batches(folder: Path, tmp_path: Path, workers: int) -> None:
    saving = ModelCheckpoint(
        tmp_path / "ckpt", filename="{step}", every_n_train_steps=1, save_top_k=-1
    )
    whole = fit(folder, workers=workers, callback=saving)
    assert [epoch for epoch, _ in whole] == [0] * 4 + [1] * 4 + [2] * 4
    assert whole[0][1] != whole[4][1]
    # In an epoch, before its last batch, at its end, after the first of the next one.
    for step in (2, 3, 4, 5, 7) if workers == 0 else (4, 6):
        rest = fit(folder, workers=workers, resume=tmp_path / "ckpt" / f"step={step}.ckpt")
        assert rest == whole[step:], step


@pytest.mark.filterwarnings("ignore")
def test_resuming_at_an_epochs_end(folder: Path, tmp_path: Path) -> None:
    saving = ModelCheckpoint(
        tmp_path / "ckpt", filename="{step}", save_on_train_epoch_end=True, save_top_k=-1
    )
    whole = fit(folder, workers=0, callback=saving)
    rest = fit(folder, workers=0, resume=tmp_path / "ckpt" / "step=8.ckpt")
    assert rest == whole[8:]


@pytest.mark.filterwarnings("ignore")
def test_files_broken_in_workers_are_counted_here(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = module(folder, num_workers=2)
    (folder / "b.mp4").write_text("gone bad")
    for batch in data.train_dataloader():
        data.on_before_batch_transfer(batch, 0)
    assert list(data.train.broken) == ["b.mp4"]
    with caplog.at_level(logging.WARNING):
        data.teardown("fit")
    assert "1 files of" in caplog.text
    assert "b.mp4" in caplog.text
    data.train.max_broken = 0.3
    with pytest.raises(RunError, match="1 of 3 files"):
        data.on_before_batch_transfer(batch, 0)


def test_too_few_samples_for_a_batch(folder: Path) -> None:
    data = module(folder, batch_size=19)
    with pytest.raises(UserError, match="18 samples, too few"):
        data.train_dataloader()


def test_yaml_configures_it_without_touching_the_disk(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(ZooDataModule, "data")
    config = tmp_path / "config.yaml"
    config.write_text(
        "data:\n"
        "  train:\n"
        "    class_path: zoo.data.sources.VideoFolder\n"
        "    init_args: {root: /no/such/folder, frames: 9, short_side: [64, 80]}\n"
        "  val:\n"
        "    class_path: zoo.data.sources.ImageFolder\n"
        "    init_args: {root: [/none, asset:bikes.mp4], train: false}\n"
        "  batch_size: 2\n"
    )
    built = parser.instantiate_classes(parser.parse_path(config)).data
    assert isinstance(built.train, VideoFolder)
    assert built.train.short_side == (64, 80)
    with pytest.raises(UserError, match="/no/such/folder"):
        built.prepare_data()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("call", "returned"), [("_begin_worker(0)", True), ("None", False)])
def test_loading_processes_return_memory_that_training_keeps(call: str, returned: bool) -> None:
    """A loader forked from a training has its allocator's settings: freed clips would pile up."""
    script = f"""
import torch
from zoo.data.datamodule import _begin_worker
from zoo.kernels.allocator import keep_memory
from zoo.metrics.loader_speed import resident_mb
torch.cuda.is_available = lambda: False
keep_memory()
{call}
before = resident_mb()
clips = [torch.ones(2**20) for _ in range(50)]
held = resident_mb() - before
del clips
print(held, resident_mb() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held, left = map(float, done.stdout.split())
    assert held > 180
    assert (left < 20) == returned
