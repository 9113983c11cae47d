"""How far small departures from published code lead.

    python benchmarks/baselines.py --out docs/under_run_baselines.md

Every row changes one thing and compares what is kept with what the published code kept on the same random features
(`FOVEATE_GOLDEN`/baselines, else those beside the tests). CPU, minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from departures import SparseVLMOneLess
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from foveate.core.attention import received_attention
from foveate.core.budget import top
from foveate.core.selection import Selection
from foveate.core.view import ModelInfo, Tap, View
from foveate.files.atomic import write_text
from foveate.maths.bipartite import match
from foveate.maths.diversity import greedy_map
from foveate.maths.similarity import complement, nearest, unit
from foveate.methods import DART, FasterVLM, HiPrune, PruMerge, SparseVLM, VisionZip, VisPruner, VScan
from foveate.methods.cdpruner import relevance

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("FOVEATE_GOLDEN", ROOT.parent / "shared" / "golden")) / "baselines"
Tensors = dict[str, Tensor]
RECEIVED = Tap("received")


def cases(method: str) -> Iterator[tuple[dict[str, Any], Tensors]]:
    folder = GOLDEN if GOLDEN.is_dir() else ROOT / "tests" / "golden" / "baselines"
    for path in sorted((folder / method).glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8")), load_file(path.with_suffix(".safetensors"))


def image(hidden: Tensor, taps: dict[Tap, Tensor] | None = None, heads: int = 0, **more: Any) -> View:
    side = math.isqrt(len(hidden))
    return View.of(hidden, grid=(1, side, side), taps=taps, info=ModelInfo("llava", 32, 24, True, heads), **more)


def indices(choice: Any) -> Tensor:
    return choice.index if isinstance(choice, Selection) else choice


def shared(found: Any, expected: Tensor) -> float:
    """Share of the published kept set that was kept."""
    return len(set(indices(found).tolist()) & set(expected.tolist())) / len(expected)


# -- one function per departure: what is kept, or how far the values are -------------------------------------


def fastervlm(about: dict[str, Any], t: Tensors, change: bool) -> float:
    attention = t["class_attention"]
    score = attention.amax(0) if change else attention.sum(0)
    return shared(FasterVLM(keep=about["keep"]).select(image(score[:, None], {RECEIVED: score})), t["kept"])


def hiprune(about: dict[str, Any], t: Tensors, change: bool) -> float:
    method = HiPrune(keep=about["keep"], alpha=about["alpha"], wrap=not change)
    middle, deep = t["middle"].sum(0), t["deep"].sum(0)
    taps = dict(zip(method.taps(image(deep[:, None]).info), (middle, deep), strict=True))
    return shared(method.select(image(deep[:, None], taps)), t["kept"])


def dart(about: dict[str, Any], t: Tensors, change: bool) -> float:
    n = math.isqrt(len(t["hidden"])) ** 2
    hidden, keys = t["hidden"], t["keys"]
    view = image(hidden[:n], layer=2, text=hidden[n:], keys=keys[:, :n], text_keys=keys[:, n:])
    if change:
        return shared(DART().choose(view, len(t["kept"])), t["kept"])
    front = 35  # text in front of the image, which is no pivot
    text = torch.cat([hidden[n:][:1].expand(front, -1), hidden[n:]])
    text_keys = torch.cat([keys[:, n : n + 1].expand(-1, front, -1), keys[:, n:]], 1)
    view = image(hidden[:n], layer=2, text=text, keys=keys[:, :n], text_keys=text_keys)
    return shared(DART(published=True, image_place=front).choose(view, len(t["kept"])), t["kept"])


def vispruner(about: dict[str, Any], t: Tensors, change: bool) -> float:
    attention, hidden, keep = t["class_attention"].sum(0), t["hidden"], about["keep"]
    view = image(hidden, {RECEIVED: attention, Tap("hidden"): hidden})
    if not change:
        method = VisPruner(keep=keep, important=about["important"], step=about["step"])
        return shared(method.select(view), t["kept"])
    ranked = attention.argsort(descending=True, stable=True)
    important = int(about["important"] * keep)
    left = ranked[important:]
    while (surplus := len(left) - (keep - important)) > 0:
        first, _ = match(hidden[left], min(about["step"], surplus, len(left) // 2))
        left = left[complement(len(left), first)]
    return shared(torch.cat([ranked[:important], left]), t["kept"])


def vscan(about: dict[str, Any], t: Tensors, change: bool) -> float:
    projected, keep = t["projected"], about["keep"]
    windows = math.isqrt(len(projected)) // about["window"]
    method = VScan(windows=windows)
    shallow, deep = method.taps(image(projected).info)
    scores = {shallow: t["shallow"].sum(0), deep: t["deep"].sum(0)}
    if not change:
        return shared(method.choose(image(projected, scores), keep), t["kept"])
    local = len(t["local"])
    overall = top(scores[deep], keep - local)
    side = about["window"]
    row, col = torch.arange(len(projected)) // (windows * side), torch.arange(len(projected)) % (windows * side)
    rest = scores[shallow].index_fill(0, overall, -1.0)
    chosen = [overall]
    for window in range(windows * windows):
        inside = ((row // side) * windows + col // side == window).nonzero().squeeze(1)
        chosen.append(inside[rest[inside].topk(local // windows**2).indices])
    return shared(torch.cat(chosen), t["kept"])


def cdpruner(about: dict[str, Any], t: Tensors, change: bool) -> float:
    weight = relevance(t["image_embeds"], t["text_embeds"], 1.0 if change else -1.0)
    return shared(greedy_map(t["projected"], weight, len(t["kept"])), t["kept"])


def visionzip(about: dict[str, Any], t: Tensors, change: bool) -> float:
    """Share of the tokens merged into the target that the published similarity chooses."""
    targets, kept = t["targets"], t["kept"]
    merged = complement(len(t["keys"]), kept.sort().values)
    mean_keys, flat = unit(t["keys"].mean(1)), unit(t["keys"].flatten(1))
    published = nearest(mean_keys[merged], mean_keys[targets])[1]
    keys = flat if change else mean_keys
    return float((nearest(keys[merged], keys[targets])[1] == published).float().mean())


def visionzip_kept(about: dict[str, Any], t: Tensors, change: bool) -> float:
    attention = t["class_attention"]
    if change:  # every head weighs as much as any other, however much of it the class token keeps for itself
        attention = attention / attention.sum(-1, keepdim=True)
    keep = about["dominant_count"] + about["contextual_count"]
    taps = {RECEIVED: attention.sum(0), Tap("keys"): t["keys"].flatten(1)}
    method = VisionZip(keep=keep, dominant=about["dominant_count"] / keep)
    return shared(method.select(image(t["hidden"], taps, heads=t["keys"].shape[1])), t["kept"])


def dart_asked(about: dict[str, Any], t: Tensors, change: bool) -> float:
    """The published order of pivots; changed: no more tokens than were asked for."""
    if not change:
        return dart(about, t, False)
    n = math.isqrt(len(t["hidden"])) ** 2
    hidden, keys = t["hidden"], t["keys"]
    view = image(hidden[:n], layer=2, text=hidden[n:], keys=keys[:, :n], text_keys=keys[:, n:])
    return shared(DART().choose(view, about["asked"]), t["kept"])


def visionzip_values(about: dict[str, Any], t: Tensors, change: bool) -> float:
    keep = about["dominant_count"] + about["contextual_count"]
    method = VisionZip(keep=keep, dominant=about["dominant_count"] / keep, published=not change)
    taps = {RECEIVED: t["class_attention"].sum(0), Tap("keys"): t["keys"].flatten(1)}
    found = method.select(image(t["hidden"], taps, heads=t["keys"].shape[1]))
    return _distance(found, t["hidden"], t["targets"], t["contextual_tokens"])


def prumerge(about: dict[str, Any], t: Tensors, change: bool) -> float:
    attention, kept, keys = t["class_attention"], t["kept"].sort().values, unit(t["keys"])
    if not change:
        view = image(t["hidden"], {RECEIVED: attention, Tap("keys"): t["keys"]}, heads=1)
        return _distance(PruMerge().select(view), t["hidden"], t["kept"], t["tokens"])
    rest = complement(len(keys), kept)
    near = rest[(keys[kept] @ keys[rest].T).topk(about["neighbours"]).indices]
    values = t["hidden"][kept] + (t["hidden"][near] * attention[near][..., None]).sum(1)
    places = torch.searchsorted(kept, t["kept"])
    return float((values[places] - t["tokens"]).abs().max())


def sparsevlm(about: dict[str, Any], t: Tensors, change: bool) -> float:
    """Share of the published clusters whose mean was found (within 1e-4)."""
    ranked = len(t["kept"])
    method = SparseVLMOneLess() if change else SparseVLM()
    score = t["rater_attention"].mean(0)
    found = method.recycle(image(t["visual"], layer=2), score, ranked, len(t["merged"]))
    assert isinstance(found, Selection)
    distances = torch.cdist(t["merged"], found.apply(t["visual"]), compute_mode="donot_use_mm_for_euclid_dist")
    return float((distances.min(1).values < 1e-4).float().mean())


def _distance(found: Any, hidden: Tensor, places: Tensor, values: Tensor) -> float:
    return float((found.apply(hidden)[torch.searchsorted(found.index, places)] - values).abs().max())


SETS: dict[str, tuple[str, Callable[[dict[str, Any], Tensors, bool], float], str]] = {
    "FasterVLM": ("fastervlm", fastervlm, "maximum over heads instead of their mean"),
    "HiPrune": ("hiprune", hiprune, "neighbours end at the image's border"),
    "DART": ("dart", dart, "pivots in reading order, visual ones first"),
    "DART, number": ("dart", dart_asked, "visual pivots first, and pivots count among the tokens asked for"),
    "VisPruner": ("vispruner", vispruner, "tokens left stay in order of attention"),
    "VScan, stage 1": ("vscan_stage1", vscan, "global scan before the local one"),
    "CDPruner": ("cdpruner_map", cdpruner, "relevance with the other sign"),
    "VisionZip": ("visionzip", visionzip_kept, "attention of each head without what the class token pays itself"),
    "VisionZip, groups": ("visionzip", visionzip, "keys with heads concatenated, not averaged"),
    "SparseVLM, clusters": ("sparsevlm", sparsevlm, "one token less is recycled"),
}
VALUES: dict[str, tuple[str, Callable[[dict[str, Any], Tensors, bool], float], str]] = {
    "VisionZip": ("visionzip", visionzip_values, "mean of target and members instead of target plus mean"),
    "PruMerge": ("prumerge", prumerge, "neighbours among dropped tokens only"),
}


def table(rows: dict[str, Any], last: str) -> list[str]:
    lines = [f"| method | changed | cases | as published: {last} | changed: {last} |", "|---|---|---|---|---|"]
    for name, (folder, measure, what) in rows.items():
        found = [(measure(about, t, False), measure(about, t, True)) for about, t in cases(folder)]
        if found:
            plain, changed = (mean(pair[i] for pair in found) for i in (0, 1))
            lines.append(f"| {name} | {what} | {len(found)} | {plain:.3f} | {changed:.3f} |")
    return lines


# -- sampled queries ------------------------------------------------------------------------------------------


def peaked(n: int, heads: int = 16, width: int = 64) -> tuple[Tensor, Tensor]:
    """Random queries and keys of a square image whose attention is peaked: smooth fields, and tokens that draw it."""
    random, side = torch.Generator().manual_seed(0), math.isqrt(n)
    few = max(2, side // 8)
    low = torch.randn(1, heads * width, few, few, generator=random)
    smooth = F.interpolate(low, size=(side, side), mode="bicubic").reshape(heads, width, n).transpose(1, 2)
    k = smooth + torch.randn(heads, n, width, generator=random)
    q = smooth + torch.randn(heads, n, width, generator=random)
    strength = torch.randn(n, generator=random).exp()
    k = k + torch.randn(heads, 1, width, generator=random) * strength[None, :, None] * 0.3
    q = q + torch.randn(heads, 1, width, generator=random) * 0.5
    return q * 2.5, k


def sampled(sizes: list[int]) -> list[str]:
    lines = [
        "| patches | queries | time over exact | most attended third | most attended ninth |",
        "|---|---|---|---|---|",
    ]
    for n in sizes:
        q, k = peaked(n)
        start = time.perf_counter()
        exact = received_attention(q, k, 0.125, [n])
        took = time.perf_counter() - start
        for queries in (256, 1024, 2048, 4096):
            if queries < n:
                start = time.perf_counter()
                found = received_attention(q, k, 0.125, [n], queries)
                share = (time.perf_counter() - start) / took
                both = [shared(found.topk(n // part).indices, exact.topk(n // part).indices) for part in (3, 9)]
                lines.append(f"| {n:,} | {queries:,} | {share:.2f} | {both[0]:.2f} | {both[1]:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[576, 2304, 16384], help="Patches, for sampled queries."
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# How baselines get under-run", "", "Written by `python benchmarks/baselines.py`.", "",
        "Each row departs from the published code in one thing that is easy to miss. On random features (24 x 24 "
        "tokens, as in the fixtures of `tests/golden/baselines`) the published functions, unchanged, kept some tokens; "
        "the column *as published* is this library set to do the same, *changed* is the same with that one difference. "
        "Random features have no redundancy, so a difference shows more here than on images: it says that two "
        "implementations are not the same method, not how many answers it costs.", "",
        "## Tokens kept", "", "Mean share of the published choice that is chosen as well.", "",
        *table(SETS, "shared"), "",
        "A collection of methods that is used for comparisons, AngelSlim (read at commit 17d3d92), departs from the "
        "published code in three methods, so that its kept sets are not the published ones: in VisionZip the softmax "
        "leaves the class token out, and a merged token is the mean of target and members; HiPrune reads the class "
        "token's attention instead of that of all queries; DART takes visual pivots first and counts pivots among the "
        "tokens asked for. Its DivPrune chooses as published.", "",
        "## Values of merged tokens", "",
        "Mean over cases of the largest difference; the features have scale 1.", "", *table(VALUES, "difference"), "",
        "## Attention received from a sample of queries", "",
        "On towers without a class token attention received is averaged over queries. How much of the most attended "
        "third and ninth is found by evenly spaced ones, on random attention whose most attended tenth receives about "
        "0.6 of it (16 heads, one CPU thread):", "", *sampled(options.sizes), "",
        "What the default, 1,024, finds on pictures: [reading.md](reading.md).", "",
    ]  # fmt: skip
    write_text(options.out, "\n".join(lines))


if __name__ == "__main__":
    main()
