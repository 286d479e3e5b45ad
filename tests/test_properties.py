"""What holds for any input: the config parser, shards, the converter, cards, reports."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import zoo
from zoo.benchmark.figures import svg, text
from zoo.benchmark.tables import escape_latex
from zoo.cards import BEGIN, END, with_table
from zoo.convert.cdt import from_reference, to_reference
from zoo.data.buckets import Buckets, in_batches
from zoo.data.shards import Member, ShardIndex, ShardSample, scan
from zoo.errors import RunError, UserError
from zoo.hub import trained
from zoo.nets.cdt import CDT, CDTConfig
from zoo.nets.pretrained import parse_config
from zoo.remote import check_card, read_metrics

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
SHIPPED = sorted(trained())
FIELDS = [field.name for field in dataclasses.fields(CDTConfig)]
QUICKLY = settings(max_examples=60, deadline=None, derandomize=True)
T = TypeVar("T")


def or_refusal(work: Callable[[], T]) -> T | None:
    """The result, or None after a refusal in one line; any other exception is a failure."""
    try:
        return work()
    except (UserError, RunError) as error:
        said = str(error)
    assert "\n" not in said
    return None


@QUICKLY
@given(st.dictionaries(st.sampled_from([*FIELDS, "no_such_key"]), JSON, max_size=4))
def test_a_config_is_taken_whole_or_refused(values: dict[str, Any]) -> None:
    """What is accepted stands in the config as given; anything else is one sentence."""
    config = or_refusal(lambda: parse_config(CDTConfig, values, "config.json"))
    if config is None:
        return
    assert "no_such_key" not in values
    for key, value in values.items():
        kept = getattr(config, key)
        assert kept == (tuple(value) if isinstance(value, list) else value)
    again = json.loads(json.dumps(dataclasses.asdict(config)))
    assert parse_config(CDTConfig, again, "again") == config


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


@QUICKLY
@given(st.lists(st.tuples(NAMES, st.binary(max_size=700)), max_size=6))
def test_a_tar_is_indexed_as_it_was_written(members: list[tuple[str, bytes]]) -> None:
    """Every place holds what was put there; whatever the names are, nothing is opened by them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as box:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            box.addfile(info, io.BytesIO(data))
    tar = out.getvalue()
    index = scan(io.BytesIO(tar), "a.tar")
    written = {data for _, data in members}
    for sample in index.samples:
        for member in sample.members.values():
            assert tar[member.offset : member.offset + member.size] in written
    plain = [name for name, _ in members if name.isalnum()]
    assert not {sample.key for sample in index.samples} & set(plain), "no dot: no sample"


@QUICKLY
@given(st.binary(max_size=3000), st.integers(0, 2000), st.integers(0, 400))
def test_any_bytes_are_a_tar_or_refused(noise: bytes, place: int, cut: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as box:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = 100
            box.addfile(info, io.BytesIO(bytes(100)))
    whole = out.getvalue()
    for data in (noise, whole[:place] + noise + whole[place + len(noise) :], whole[: 4096 - cut]):
        index = or_refusal(lambda data=data: scan(io.BytesIO(data), "a.tar"))  # type: ignore[misc]
        for sample in index.samples if index is not None else ():
            assert all(m.offset + m.size <= len(data) for m in sample.members.values())


SAMPLES = st.builds(
    ShardSample,
    st.text(min_size=1, max_size=12),
    st.dictionaries(
        st.sampled_from(["png", "mp4", "txt", "json"]),
        st.builds(
            Member,
            st.integers(0, 10**6),
            st.integers(0, 10**6),
            st.none() | st.integers(0, 2**32 - 1),
        ),
    ),
    st.dictionaries(st.sampled_from(["frames", "width"]), st.integers(0, 10**6)),
)


@QUICKLY
@given(st.lists(SAMPLES, max_size=5, unique_by=lambda sample: sample.key), st.data())
def test_an_index_round_trips_and_damage_is_refused(
    samples: list[ShardSample], data: st.DataObject
) -> None:
    index = ShardIndex(samples, 2 * 10**6, "ab")
    written = index.to_json()
    assert ShardIndex.from_json(written, "index") == index
    place = data.draw(st.integers(0, len(written) - 1))
    damaged = written[:place] + data.draw(st.text(max_size=3)) + written[place + 1 :]
    or_refusal(lambda: ShardIndex.from_json(damaged, "index"))


@given(JSON)
@QUICKLY
def test_any_json_is_an_index_or_refused(content: Any) -> None:
    for value in (content, {"format": 1, "samples": content, "bytes": 1, "sha256": ""}):
        index = or_refusal(lambda value=value: ShardIndex.from_json(json.dumps(value), "index"))  # type: ignore[misc]
        assert index is None or index.samples == []


@pytest.fixture(scope="module")
def narrow() -> CDT:
    torch.manual_seed(0)
    net = zoo.create("cdt_small", context_dim=4, unet_dim=4)
    assert isinstance(net, CDT)
    return net


@settings(QUICKLY, max_examples=12)
@given(data=st.data())
def test_the_converter_is_strict_and_two_way(narrow: CDT, data: st.DataObject) -> None:
    """There and back is the same; a key less, more or of another shape is named."""
    tensors = dict(to_reference(narrow))
    key = data.draw(st.sampled_from(sorted(tensors)))
    fault = data.draw(st.sampled_from(["none", "missing", "unexpected", "shape"]))
    if fault == "missing":
        del tensors[key]
    elif fault == "unexpected":
        tensors[f"{key}.more"] = torch.zeros(1)
    elif fault == "shape":
        tensors[key] = tensors[key][..., None]
    with torch.device("meta"):
        other = zoo.create("cdt_small", context_dim=4, unet_dim=4)
    assert isinstance(other, CDT)
    if fault != "none":
        with pytest.raises(UserError) as error:
            from_reference(other, tensors)
        assert key in str(error.value)
        return
    from_reference(other, tensors)
    mine = narrow.state_dict()
    for name, tensor in other.state_dict().items():
        assert name.startswith("latent_") or torch.equal(tensor, mine[name])


KEYS = st.sampled_from(["licence", "metrics", "sha256", "name", "subset"])


@QUICKLY
@given(st.binary(max_size=200) | st.dictionaries(KEYS, JSON).map(json.dumps).map(str.encode))
@example(b'{"metrics":' + b"[" * 100_000)
@example(b'{"licence": "MIT", "metrics": [1], "sha256": ["a"]}')
@example(b'{"licence": "MIT", "metrics": [1], "sha256": null}')
def test_any_metrics_are_of_the_weights_or_refused(content: bytes) -> None:
    """Of a folder from anywhere: a table that has what a card needs, or one sentence."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, data in (
            ("README.md", b"card"),
            ("config.json", b"{}"),
            ("model.safetensors", b"weights"),
            ("metrics.json", content),
        ):
            (folder / name).write_bytes(data)
        found = or_refusal(lambda: check_card(folder))
    if found is not None:
        assert found["licence"]
        assert found["metrics"]
        assert found.get("sha256") in (None, hashlib.sha256(b"weights").hexdigest())


@QUICKLY
@given(st.text(max_size=60), st.text(max_size=60), st.lists(st.sampled_from(SHIPPED), max_size=4))
def test_the_table_of_models_changes_nothing_else(
    before: str, after: str, names: list[str]
) -> None:
    models = [read_metrics(folder) for name in names if (folder := trained()[name])]
    made = with_table(f"{before}{BEGIN}{before}{END}{after}", models)
    assert made.startswith(f"{before}{BEGIN}\n| model |")
    assert made.endswith(f"{END}{after}")
    assert with_table(made, models) == made
    table = made[len(before) :].split(END)[0].strip().splitlines()[1:]
    assert len(table) == 2 + len(models)
    assert len({row.count("|") for row in table}) == 1


@QUICKLY
@given(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40))
def test_names_in_reports_are_text(name: str) -> None:
    """Whatever a model or a file is called, a report holds no markup of it."""
    drawn = svg([text(1, 2, name)], title=name)
    tree = ET.fromstring(drawn)
    assert {element.tag.rpartition("}")[2] for element in tree.iter()} <= {"svg", "title", "text"}
    assert any((element.text or "") == name for element in tree.iter())
    plain = escape_latex(name)
    for mark in "&%$#_{}":
        assert plain.count(f"\\{mark}") >= name.count(mark)
    commands = set(re.findall(r"\\([A-Za-z]+)", plain))
    assert commands <= {"textbackslash", "textasciitilde", "textasciicircum"}


@QUICKLY
@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.integers(1, 7),
    st.randoms(use_true_random=False),
)
def test_bucket_batches_lose_only_the_rest(buckets: list[int], chunk: int, random: Any) -> None:
    bucket = np.array(buckets, dtype=np.int64)
    order = np.array(random.sample(range(len(bucket)), len(bucket)), dtype=np.int64)
    batches = in_batches(order, bucket, chunk)
    assert len(set(batches.tolist())) == len(batches)
    counts = np.bincount(bucket, minlength=4)
    assert len(batches) == int((counts - counts % chunk).sum())
    for batch in batches.reshape(-1, chunk):
        assert len(set(bucket[batch].tolist())) == 1


@QUICKLY
@given(st.integers(1, 200), st.integers(1, 4000), st.integers(1, 4000))
def test_samples_cover_their_buckets(frames: int, width: int, height: int) -> None:
    buckets = Buckets(128, frames=(1, 17, 33), multiple=8)
    sizes = (np.array([v], dtype=np.int64) for v in (frames, width, height))
    number = int(buckets.assign(*sizes)[0])
    t, h, w = buckets.shapes[number]
    assert t <= frames
    side = buckets.covering(number, width, height)
    scale = side / min(width, height)
    assert max(side, round(width * scale)) >= w
    assert max(side, round(height * scale)) >= h
