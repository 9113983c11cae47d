"""Rewards for boxes in answers, each in [0, 1]; those for text are the metrics of `foveate.scoring`.

Source: GlimpsePrune+ (https://github.com/HVision-NKU/GlimpsePrune).
"""

import math
import re

_BOX = re.compile(r"\[\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\]")


def box_iou(completion: str, answer: str) -> float:
    """Intersection over union of the first box `[x0, y0, x1, y1]` in either text; 0 if one has none."""
    one, other = _first_box(completion), _first_box(answer)
    if one is None or other is None:
        return 0.0
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    shared = width * height
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared
    return shared / (union + 1e-6)


def box_format(completion: str) -> float:
    """1 if the completion contains exactly one box `[x0, y0, x1, y1]`, else 0."""
    return float(len(_BOX.findall(completion)) == 1)


def _first_box(text: str) -> list[float] | None:
    match = _BOX.search(text)
    if match is None:
        return None
    try:
        box = [float(x) for x in match.groups()]
    except ValueError:  # such as "1.2.3"
        return None
    return box if all(math.isfinite(x) for x in box) else None
