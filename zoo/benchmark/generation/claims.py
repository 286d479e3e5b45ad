"""What TiUE's abstract claims (arXiv 2505.21960), a row each, judged by paired intervals.

A model takes part under its label: `tiue`, `one_step`, ... as in
`--models tiue=dir:runs/tiue/export@N=4 one_step=dir:runs/one_step/export@steps=1`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.benchmark.generation.results import Results, difference
from zoo.benchmark.generation.tables import KID_SCALE
from zoo.errors import UserError

Model = dict[str, Any]
ROLES = {
    "tiue": "one encoder pass, four decoder passes, KL term, reverse KL",
    "one_step": "SwiftBrush-style student, one step",
    "lcm": "latent consistency model, four steps",
    "four_step": "four steps, no sharing",
    "teacher": "the teacher, many steps with guidance",
    "kl_0": "TiUE without the KL term",
    "js": "TiUE by the Jensen-Shannon divergence",
    "forward_kl": "TiUE by the forward KL",
}


@dataclass(frozen=True)
class Claim:
    """`role` has a better `metric` than `other`; `better` is +1 where more is better."""

    text: str
    role: str
    other: str
    metric: str
    better: int


@dataclass(frozen=True)
class Verdict:
    """A row: what was claimed, what was measured, and whether it holds."""

    claim: str
    measured: str
    verdict: str


_REAL = "closer to real pictures"
_DIVERSE = "more diverse for equal prompts"
_COVER = "more of the real pictures covered"
CLAIMS = (
    Claim(f"{_REAL} than one step (SwiftBrush)", "tiue", "one_step", "kid", -1),
    Claim(f"{_REAL} than LCM", "tiue", "lcm", "kid", -1),
    Claim(f"{_DIVERSE} than one step", "tiue", "one_step", "diversity", 1),
    Claim(f"{_DIVERSE} than LCM", "tiue", "lcm", "diversity", 1),
    Claim(f"{_COVER} than by one step", "tiue", "one_step", "recall", 1),
    Claim(f"{_COVER} than by LCM", "tiue", "lcm", "recall", 1),
    Claim("sharing the encoder costs no realism against four steps", "tiue", "four_step", "kid", 0),
    Claim("nor diversity", "tiue", "four_step", "diversity", 0),
    Claim("the KL term (lambda .1 against 0) makes pictures more real", "tiue", "kl_0", "kid", -1),
    Claim("the KL term makes pictures more diverse", "tiue", "kl_0", "diversity", 1),
    Claim("fewer FLOPs than four steps", "tiue", "four_step", "gflops", -1),
    Claim("FLOPs beside one step", "tiue", "one_step", "gflops", 0),
    Claim("fewer FLOPs than LCM", "tiue", "lcm", "gflops", -1),
    Claim("fewer FLOPs than the teacher", "tiue", "teacher", "gflops", -1),
    Claim("(ours) JS in place of the reverse KL: realism", "js", "tiue", "kid", 0),
    Claim("(ours) JS in place of the reverse KL: diversity", "js", "tiue", "diversity", 0),
    Claim("(ours) forward KL in place of the reverse KL: realism", "forward_kl", "tiue", "kid", 0),
    Claim("(ours) forward KL: diversity", "forward_kl", "tiue", "diversity", 0),
)
_TITLES = {
    "kid": "KID x1000",
    "diversity": "LPIPS diversity",
    "recall": "recall",
    "gflops": "UNet GFLOPs",
}


def judge(results: Results, *, features: Path | None = None) -> list[Verdict]:
    """A verdict for every claim; "not measured" where a model or a metric is missing.

    Args:
        results: of `collect`.
        features: features.json of `zoo benchmark features`, for the claim behind the method.

    Raises:
        UserError: features is no such file.
    """
    return [*_similarity(features), *(_judge(claim, results) for claim in CLAIMS)]


def _judge(claim: Claim, results: Results) -> Verdict:
    models = {model["label"]: model for model in results["models"]}
    missing = [role for role in (claim.role, claim.other) if role not in models]
    if missing:
        return Verdict(claim.text, f"no model called {' or '.join(missing)}", "not measured")
    one, two = models[claim.role], models[claim.other]
    title = _TITLES[claim.metric]
    if claim.metric == "gflops":
        a, b = one["gflops"], two["gflops"]
        measured = f"{title} {a:.3g} / {b:.3g} = {a / b:.3f}"
        return Verdict(claim.text, measured, _word(a - b, a - b, claim.better))
    key = _key(claim.metric, results)
    apart = None if key is None else difference(one, two, key)
    if key is None or apart is None:
        return Verdict(claim.text, f"no {title} with an interval", "not measured")
    factor, digits = (KID_SCALE, 2) if claim.metric == "kid" else (1.0, 4)
    values = [m["metrics"][key]["mean"] * factor for m in (one, two)]
    low, mean, high = (apart[k] * factor for k in ("low", "mean", "high"))
    measured = (
        f"{title} {values[0]:.{digits}f} / {values[1]:.{digits}f}, difference "
        f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    )
    better = claim.better or (-1 if claim.metric == "kid" else 1)
    word = _word(low, high, better)
    if not claim.better:
        word = {"holds": "better", "does not hold": "worse", "open": "no difference seen"}[word]
    return Verdict(claim.text, measured, word)


def _word(low: float, high: float, better: int) -> str:
    """Whether an interval of a difference lies on the claimed side of 0."""
    if better == 0:
        return "measured"
    low, high = (low, high) if better > 0 else (-high, -low)
    return "holds" if low > 0 else "does not hold" if high < 0 else "open"


def _key(metric: str, results: Results) -> str | None:
    """The metric's name in a result: of the first network, FID's where it could be had."""
    if metric == "diversity":
        return metric
    names = list(results["networks"])
    return f"{metric}_{names[0]}" if names else None


def _similarity(features: Path | None) -> list[Verdict]:
    text = "encoder features change less between time steps than decoder features"
    if features is None:
        return [Verdict(text, "no --features given", "not measured")]
    try:
        rows = json.loads(features.read_text())["rows"]
        pairs = [(r["steps"], float(r["encoder"]), float(r["decoder"])) for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--features {features} is no features.json of `zoo benchmark features` ({error})"
        ) from error
    measured = "; ".join(f"{n} steps: {e:.3f} / {d:.3f}" for n, e, d in pairs)
    more = sum(e > d for _, e, d in pairs)
    word = "holds" if more == len(pairs) else "does not hold" if more == 0 else "open"
    return [Verdict(text, f"cosine of adjacent steps, encoder / decoder: {measured}", word)]


def to_markdown(verdicts: list[Verdict]) -> str:
    """A table."""
    lines = ["| TiUE's claim | measured | verdict |", "|---|---|---|"]
    lines += [f"| {v.claim} | {v.measured} | {v.verdict} |" for v in verdicts]
    return "\n".join([*lines, ""])


def to_json(verdicts: list[Verdict]) -> list[dict[str, str]]:
    """For results.json."""
    return [asdict(verdict) for verdict in verdicts]
