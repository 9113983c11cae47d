from __future__ import annotations

from collections import defaultdict
from itertools import combinations, pairwise

import numpy as np
import pytest

from foveate import scenes
from foveate.scenes.moving import compose_moving

SPEC = scenes.SPECS["video"]


def tracks(frames):
    """Boxes of every thing over time, followed by the nearest of the same colour and kind."""
    found = defaultdict(dict)
    open_ends = []
    for t, (scene, _) in enumerate(frames):
        for shape in scene.shapes:
            x, y = shape.center
            near = [e for e in open_ends if e[1:3] == (shape.color, shape.shape) and e[3] == t - 1]
            near.sort(key=lambda e: (e[4] - x) ** 2 + (e[5] - y) ** 2)
            thing = near[0][0] if near else len(found)
            found[thing][t] = shape
            open_ends = [e for e in open_ends if e[0] != thing]
            open_ends.append((thing, shape.color, shape.shape, t, x, y))
    return list(found.values())


@pytest.mark.parametrize("i", range(12))
def test_nothing_touches_or_leaves_the_frame(i):
    for scene, image in compose_moving(f"moving:{i}", SPEC, 8):
        assert image.size == (scene.width, scene.height)
        for shape in scene.shapes:
            x0, y0, x1, y1 = shape.box
            assert 0 <= x0 < x1 <= scene.width
            assert 0 <= y0 < y1 <= scene.height
        for a, b in combinations(scene.shapes, 2):
            assert a.box[2] < b.box[0] or b.box[2] < a.box[0] or a.box[3] < b.box[1] or b.box[3] < a.box[1]
            assert a.label != b.label


def test_things_move_straight_come_go_and_change_their_label():
    moved = changed = came = 0
    for i in range(12):
        for track in tracks(compose_moving(f"moving:{i}", SPEC, 8)):
            times = sorted(track)
            assert times == list(range(times[0], times[-1] + 1)), "a thing left and came back"
            assert times[0] == 0 or times[-1] == 7
            steps = [np.subtract(track[b].center, track[a].center) for a, b in pairwise(times)]
            if steps:
                assert np.ptp(steps, axis=0).max() <= 2.0, "speed changes by more than rounding"
            moved += any(np.abs(step).max() > 3 for step in steps)
            changed += len({s.label for s in track.values()}) == 2
            assert len({s.label for s in track.values()}) <= 2
            came += len(times) < 8
    assert min(moved, changed, came) >= 10


def test_looks_and_background_stay():
    quiet = scenes.SceneSpec(sizes=SPEC.sizes, panel_share=0.0, noise=0.0, shapes=(2, 4))
    frames = compose_moving("moving:looks", quiet, 8)
    pixels = [np.asarray(image).astype(int) for _, image in frames]
    corners = [p[:6, :6] for p in pixels]  # nothing passes there
    assert max(np.abs(corners[0] - c).max() for c in corners) <= 6
    compared = 0
    for track in tracks(frames):
        by_label = defaultdict(list)
        for t, shape in track.items():
            x, y = (int(v) for v in shape.center)
            by_label[shape.label].append(pixels[t][y - 8 : y + 8, x - 8 : x + 8])
        for first, *others in by_label.values():
            compared += len(others)
            assert all(np.abs(first - other).max() <= 8 for other in others)
    assert compared >= 5


def test_most_answers_hold_at_one_moment_only():
    """Were the first frame enough, pruning the others would cost nothing."""
    differs = 0
    some = list(scenes.load("video", n=42))
    for sample in some:
        first = sample.scenes[0]
        asked = sample.scenes[sample.asked]
        differs += {(s.name, s.label) for s in first.shapes} != {(s.name, s.label) for s in asked.shapes}
    assert differs >= 0.6 * len(some)
