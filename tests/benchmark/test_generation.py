"""`zoo benchmark generation` as a user runs it, on pipelines of a few hundred kilobytes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.benchmark.test_run import Outside
from tests.nets.toy_unet import toy
from tests.tiny_pipelines import sd_folder
from zoo.benchmark.generation import claims
from zoo.benchmark.generation.models import Settings, settings_of
from zoo.benchmark.generation.results import difference
from zoo.benchmark.generation.runner import keyed, spread, unet_flops
from zoo.cli.benchmark import main as benchmark
from zoo.errors import RunError, UserError
from zoo.metrics import networks
from zoo.metrics.networks import FeatureNet
from zoo.metrics.speed import flops
from zoo.nets.tiue import TiUEUNet
from zoo.objectives.perceptual import Perceptual

PROMPTS = ["a", "b", "a b", "b a", "a a", "b b", "a b a", "b a b", "a a b", "b b a", "a", "b a a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TiUE pipeline folder, `plain` beside it with settings of its own."""
    base = tmp_path_factory.mktemp("generation")
    for name, own in (("tiue", {}), ("plain", {"steps": 3, "plain": True, "guidance": 2.0})):
        made = sd_folder(base / name)
        index = json.loads((made / "model_index.json").read_text())
        unused = ("safety_checker", "feature_extractor", "requires_safety_checker")
        index = {k: v for k, v in index.items() if k not in (*unused, "image_encoder")}
        index |= {"_class_name": "TiUEPipeline", "text": "clip", **own}
        (made / "model_index.json").write_text(json.dumps(index))
    return base


@pytest.fixture
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with prompts and real pictures; no network of the world, but two of ours."""
    for name in ("ZOO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("ZOO_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    Path("real").mkdir()
    rng = np.random.default_rng(0)
    for number in range(14):
        picture = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).resize((32, 32)).save(f"real/{number:02d}.png")
    weights = torch.randn(48, 12, generator=torch.Generator().manual_seed(0))

    def features(frames: Tensor) -> Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(frames.float() / 255, 4)
        return small.flatten(1) @ weights

    net = FeatureNet("FD-Toy", "KID-Toy", 12, "0123", video=False, run=features)
    monkeypatch.setattr(
        networks, "load_networks", lambda device, video: ([net], {"rFID": "no weights here"})
    )
    monkeypatch.setattr(Perceptual, "load", lambda self: None)
    monkeypatch.setattr(
        Perceptual, "__call__", lambda self, y, x: (y - x).square().flatten(1).mean(1)
    )
    return folder


def run(folder: Path, *models: str, out: str = "out", more: tuple[str, ...] = ()) -> dict[str, Any]:
    given = [text.replace("DIR", f"dir:{folder}") for text in models]
    arguments = ["--prompts", "prompts.txt", "--reference", "real", "--out", out, "--device", "cpu"]
    arguments += ["--repeats", "3", "--diverse", "10", *more, "--models", *given]
    assert benchmark(["generation", *arguments]) == 0
    results: dict[str, Any] = json.loads(Path(out, "results.json").read_text())
    return results


def lines(out: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "rows.jsonl").read_text().splitlines()]


def test_generation_measures_what_the_table_needs(place: Path) -> None:
    results = run(place, "tiue=DIR/tiue", "one_step=DIR/tiue@steps=1", "teacher=DIR/plain")
    tiue, one, teacher = results["models"]
    assert [m["label"] for m in results["models"]] == ["tiue", "one_step", "teacher"]
    for model in results["models"]:
        wanted = {"kid_FD-Toy", "precision_FD-Toy", "recall_FD-Toy", "diversity"}
        assert set(model["metrics"]) == wanted
        assert model["metrics"]["kid_FD-Toy"]["n"] == 12
        for name in wanted:
            entry = model["metrics"][name]
            assert entry["low"] <= entry["mean"] <= entry["high"]
        assert model["distributions"][0]["frechet"] > 0
        assert model["seconds"] > 0
    # passes: guidance doubles them; FLOPs count them
    assert [(m["encoder_passes"], m["decoder_passes"]) for m in results["models"]] == [
        *((1, 4), (1, 1), (6, 6))
    ]
    assert one["gflops"] < tiue["gflops"] < 4 * one["gflops"]
    assert teacher["gflops"] == pytest.approx(6 * one["gflops"])
    assert results["baseline"] == "tiue"
    apart = one["difference"]["kid_FD-Toy"]
    assert apart["low"] <= apart["mean"] <= apart["high"]
    assert tiue["difference"] == {}
    # a missing network is said, by the name it has here, and none stands in
    assert set(results["not_measured"]) == {"FID", "CLIP score"}
    said = Path("out/results.md").read_text()
    assert "FID: not measured (no weights here)" in said
    assert "| tiue | 0.373 | 1 | 4 |" in said
    table = Path("out/results.csv").read_text().splitlines()
    assert len(table) == 4
    assert "kid_FD-Toy_minus_tiue_low" in table[0]


def test_generation_pairs_noise_and_prompts_and_adds_only_what_is_new(place: Path) -> None:
    first = run(place, "tiue=DIR/tiue")
    before = lines()
    pictures = [row for row in before if row["kind"] == "picture"]
    # one a prompt, and two more of ten
    assert len(pictures) == 12 + 2 * 10
    assert run(place, "tiue=DIR/tiue") == first
    assert lines() == before
    run(place, "tiue=DIR/tiue", "one=DIR/tiue@steps=1")
    after = lines()
    assert after[: len(before)] == before
    seeds = {
        label: {
            (r["key"], r["number"]): r["seed"]
            for r in after
            if r.get("seed") is not None and r["label"] == label
        }
        for label in ("tiue", "one")
    }
    assert seeds["tiue"] == seeds["one"]
    assert len(set(seeds["one"].values())) == 32
    # the same model beside itself: nothing differs, whatever the batch
    both = run(place, "tiue=DIR/tiue", "twin=DIR/tiue@N=4,steps=1", more=("--batch", "5"))
    twin = both["models"][1]["difference"]["diversity"]
    assert max(abs(v) for v in twin.values()) < 1e-5
    assert run(place, "tiue=DIR/tiue", more=("--limit", "6"))["data"]["count"] == 6
    with pytest.raises(UserError, match="holds results of another protocol"):
        run(place, "tiue=DIR/tiue", more=("--seed", "1"))


def test_generation_goes_on_after_a_stop(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.pipelines import TiUEPipeline

    whole = run(place, "tiue=DIR/tiue", out="whole")
    real, calls = TiUEPipeline.__call__, []

    def stops(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TiUEPipeline, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            run(place, "tiue=DIR/tiue")
    kept = lines()
    assert sum(row["kind"] == "picture" for row in kept) == 16
    again = run(place, "tiue=DIR/tiue")
    assert lines()[: len(kept)] == kept
    assert again["models"][0]["metrics"] == whole["models"][0]["metrics"]


def test_generation_report_stands_alone(place: Path) -> None:
    run(place, "tiue=DIR/tiue", "one_step=DIR/tiue@steps=1", "plain=DIR/plain")
    text = Path("out/report.html").read_text()
    page = Outside()
    page.feed(text)
    assert page.open == []
    assert all(load.startswith("data:") for load in page.loads)
    # 12 prompts of 3 models, 6 prompts with 3 noises each
    assert text.count("<img") == 36 + 6 * 9
    assert "<script" not in text
    for part in ("KID-Toy x1000", "What the abstract of TiUE claims", "One prompt, 3 noises"):
        assert part in text
    assert "| FLOPs beside one step | UNet GFLOPs" in Path("out/claims.md").read_text()


def test_generation_score_of_clip_is_the_models_own_cosine(place: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from tests.tiny_pipelines import tiny_clip
    from zoo.metrics.clip_score import CLIPScore

    tokenizer, encoder = tiny_clip(tmp_path)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=encoder.config.to_dict(), vision_config=vision, projection_dim=8
    )
    CLIPModel(config).save_pretrained("clip")
    crop = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)
    CLIPProcessor(images, tokenizer).save_pretrained("clip")
    ours = CLIPScore("clip")
    pictures = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    texts = ["a", "b", "a b", "b b", "a a", "b a b"]
    found = ours(pictures, texts)
    assert found.max() > 0.01
    # torchmetrics 1.9 fails on transformers 5: the model's own logits, from pictures as files are
    files = [
        Image.fromarray(((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()) for x in pictures
    ]
    for file, text, value in zip(files, texts, found, strict=True):
        given = ours.processor(text=[text], images=[file], return_tensors="pt")
        with torch.no_grad():
            logit = ours.net(**given).logits_per_image / ours.net.logit_scale.exp()
        assert float(value) == pytest.approx(max(0.0, float(logit)), abs=1e-5)
    results = run(place, "tiue=DIR/tiue", more=("--clip", "clip"))
    assert results["models"][0]["metrics"]["clip"]["n"] == 12
    assert "CLIP score" not in results["not_measured"]
    with pytest.raises(UserError, match="no CLIP at nowhere"):
        run(place, "tiue=DIR/tiue", more=("--clip", "nowhere"))


def test_generation_of_captioned_pictures_drops_categories_on_both_sides(place: Path) -> None:
    with tarfile.open("emoji.tar", "w") as box:
        for number in range(15):
            row = {"text": f"a {'b ' * number}", "style": "noto", "category": f"c{number % 3}"}
            Path(f"{number:02d}.json").write_text(json.dumps(row))
            box.add(f"{number:02d}.json")
            box.add(f"real/{number % 14:02d}.png", f"{number:02d}.png")
    more = ("--prompts", "emoji.tar", "--reference", "emoji.tar", "--styles", "noto=flat")
    results = run(place, "tiue=DIR/tiue", more=(*more, "--drop", "c1"))
    assert results["data"]["count"] == results["data"]["reference_count"] == 10
    assert results["prompts"][1][1] == "a b b , flat"
    with pytest.raises(UserError, match="--drop and --styles are for captioned pictures"):
        run(place, "tiue=DIR/tiue", more=("--drop", "c1"))


def test_generation_model_settings() -> None:
    assert settings_of("") == Settings()
    assert settings_of("steps=25,guidance=3") == Settings(steps=25, decoders=25, guidance=3.0)
    assert settings_of("N=4,parallel=no") == Settings(steps=1, decoders=4, parallel=False)
    assert settings_of("steps=2,N=4") == Settings(steps=2, decoders=4)
    assert settings_of("guidance=0") == Settings(guidance=0.0)


def test_generation_mistakes_are_one_sentence(place: Path) -> None:
    Path("broken.jsonl").write_bytes(b'{"text": "a"}\n{"text"\n{"x": 1}\n')
    Path("empty.txt").write_text("\n")
    Path("features.json").write_text("{}")
    cases: list[tuple[str, tuple[str, ...], str]] = [
        ("DIR/tiue@guidance=-1", (), "guidance=-1: give 1 for none"),
        ("DIR/tiue@guidance=lots", (), "guidance=lots: give a number"),
        ("DIR/tiue@steps=0", (), "steps=0: give a whole number"),
        ("DIR/tiue@N=2,steps=3", (), "N=2,steps=3: each of the 3 encoder passes"),
        ("DIR/tiue@stepz=3", (), "unknown setting 'stepz=3' of a model: did you mean 'steps="),
        ("DIR/tiue@parallel=maybe", (), "parallel=maybe: give yes or no"),
        ("DIR/nowhere", (), "nowhere is not a pipeline folder"),
        ("tiue_tinny", (), "unknown model 'tiue_tinny'"),
        ("DIR/tiue", ("--prompts", "broken.jsonl"), "broken lines: line 2 is not JSON; line 3"),
        ("DIR/tiue", ("--prompts", "empty.txt"), "holds no caption"),
        ("DIR/tiue", ("--prompts", "none.txt"), "can't be read as captions"),
        ("DIR/tiue", ("--reference", "none"), "there is no data at none"),
        ("DIR/tiue", ("--baseline", "me"), "--baseline me is no model of this run: tiue"),
        ("DIR/tiue", ("--batch", "0"), "--batch 0: give at least 1"),
        ("DIR/tiue", ("--styles", "noto"), "--styles noto: give STYLE=WORD"),
        ("DIR/tiue", ("--features", "features.json"), "is no features.json"),
        ("DIR/tiue", ("--size", "31"), "31 pixels are no multiple of 2"),
    ]
    for model, more, said in cases:
        with pytest.raises((UserError, RunError), match=said) as error:
            run(place, model, out="mistakes", more=more)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="two models are called tiue"):
        run(place, "DIR/tiue", "DIR/tiue")
    run(place, "DIR/tiue")
    with pytest.raises(UserError, match="running it again with the same --out and more --models"):
        benchmark(["compare", "out"])


def test_generation_flops_are_those_of_the_passes() -> None:
    net: Any = TiUEUNet.from_unet(toy())
    plain, tiue = flops(net, size=16, steps=4)
    text = (77, 24)
    assert unet_flops(net, latent=16, text=text, steps=1, decoders=4) == tiue
    # the halves embed the time step twice, the plain forward once: two parts in ten thousand
    one = unet_flops(net, latent=16, text=text, steps=1, decoders=1)
    assert one == pytest.approx(plain, rel=2e-4)
    assert unet_flops(net, latent=16, text=text, steps=3, decoders=3) == 3 * one


def test_generation_prompts_have_keys_of_their_own() -> None:
    prompts = keyed(["a", "b", "a"])
    assert len({p.key for p in prompts}) == 3
    assert keyed(["c", "a", "b", "a"])[1:] == prompts[:2] + prompts[2:]
    assert [p.text for p in spread(keyed(list("abcdefgh")), 3)] == ["a", "c", "f"]
    assert len(spread(prompts, 9)) == 3


Made = Callable[..., dict[str, Any]]


def model(label: str, *, kid: float, diversity: float, gflops: float) -> dict[str, Any]:
    """A row as `collect` makes it; all models share the noise of the replicates."""
    noise = np.random.default_rng(0).normal(size=500)
    values = {"kid_N": kid, "diversity": diversity}
    return {
        "label": label,
        "gflops": gflops,
        "metrics": {k: {"mean": v, "low": v - 1, "high": v + 1} for k, v in values.items()},
        "replicates": {k: list(v + noise) for k, v in values.items()},
    }


def test_generation_claims_are_judged_by_paired_intervals() -> None:
    results = {
        "networks": {"N": "0"},
        "models": [
            model("tiue", kid=0.010, diversity=0.30, gflops=20),
            model("one_step", kid=0.020, diversity=0.30, gflops=10),
            model("lcm", kid=0.005, diversity=0.29, gflops=40),
            model("js", kid=0.008, diversity=0.25, gflops=20),
        ],
    }
    said = {(v.claim, v.verdict) for v in claims.judge(results)}
    assert ("closer to real pictures than one step (SwiftBrush)", "holds") in said
    assert ("closer to real pictures than LCM", "does not hold") in said
    assert ("more diverse for equal prompts than one step", "open") in said
    assert ("more diverse for equal prompts than LCM", "holds") in said
    assert ("fewer FLOPs than LCM", "holds") in said
    assert ("the KL term makes pictures more diverse", "not measured") in said
    assert ("(ours) JS in place of the reverse KL: realism", "better") in said
    assert ("(ours) JS in place of the reverse KL: diversity", "worse") in said
    measured = next(v for v in claims.judge(results) if "than LCM" in v.claim).measured
    assert measured == "KID x1000 10.00 / 5.00, difference +5.00 [+5.00, +5.00]"
    # without the shared noise the same means would say nothing
    one, two = SimpleNamespace(**results).models[:2]
    assert difference(one, two, "recall") is None


def test_generation_claims_take_the_similarity_of_features(tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    path.write_text(json.dumps({"rows": [{"steps": 4, "encoder": 0.6, "decoder": 0.5}]}))
    verdict = claims.judge({"models": [], "networks": {}}, features=path)[0]
    assert verdict.verdict == "holds"
    assert "4 steps: 0.600 / 0.500" in verdict.measured
