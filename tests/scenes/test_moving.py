from __future__ import annotations

import re
from collections import Counter
from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest

from foveate import scenes
from foveate.scenes.motion import MOMENT_TYPES
from foveate.scenes.moving import SHORTEST_STAY, STEP, WAYS, compose_moving
from tests.scenes.test_answers import CHECK

SPEC, N = scenes.SPECS["video"], 18


@pytest.mark.parametrize("i", range(8))
def test_nothing_touches_or_leaves_the_frame(i):
    film = compose_moving(f"moving:{i}", SPEC, N)
    assert len(film.scenes) == len(film.images) == N
    for scene, image in zip(film.scenes, film.images, strict=True):
        assert image.size == (scene.width, scene.height)
        for shape in scene.shapes:
            x0, y0, x1, y1 = shape.box
            assert 0 <= x0 < x1 <= scene.width
            assert 0 <= y0 < y1 <= scene.height
        for a, b in combinations(scene.shapes, 2):
            assert a.box[2] < b.box[0] or b.box[2] < a.box[0] or a.box[3] < b.box[1] or b.box[3] < a.box[1]
            assert a.label != b.label


def test_things_move_straight_come_go_and_change_their_label():
    found = Counter()
    for i in range(15):
        film = compose_moving(f"moving:{i}", SPEC, N)
        for t, scene in enumerate(film.scenes):
            assert scene.shapes == [m.frames[t] for m in film.movers if m.frames[t]]
        for mover in film.movers:
            times = mover.shown
            assert times == list(range(times[0], times[-1] + 1)), "a thing left and came back"
            assert len(times) >= SHORTEST_STAY
            assert times[0] == 0 or times[-1] == N - 1
            shapes = [mover.frames[t] for t in times]
            moves = [np.subtract(b.center, a.center) for a, b in pairwise(shapes)]
            assert np.ptp(moves, axis=0).max() <= 1.0, "speed changes by more than rounding"
            went = np.sign(np.round(np.subtract(shapes[-1].center, shapes[0].center)))
            assert tuple(went) == WAYS.get(mover.way, (0, 0))
            assert len({(s.color, s.shape) for s in shapes}) == 1
            for a, b in zip(shapes[::STEP], shapes[1::STEP], strict=True):
                assert a.label == b.label, "what a model merges shows one label"
            assert times[0] % STEP == 0
            assert (times[-1] + 1) % STEP == 0
            found.update(
                still=not mover.way,
                moves=bool(mover.way),
                changed=len({s.label for s in shapes}) == 2,
                came=times[0] > 0,
                left=times[-1] < N - 1,
            )
    assert min(found.values()) >= 8


def test_looks_and_background_stay():
    quiet = scenes.SceneSpec(sizes=SPEC.sizes, panel_share=0.0, noise=0.0, shapes=(2, 4))
    film = compose_moving("moving:looks", quiet, N)
    pixels = [np.asarray(image).astype(int) for image in film.images]
    corners = [p[:6, :6] for p in pixels]  # nothing passes there
    assert max(np.abs(corners[0] - c).max() for c in corners) <= 6
    compared = 0
    for mover in film.movers:
        by_label = {}
        for t in mover.shown:
            x, y = (int(v) for v in mover.frames[t].center)
            by_label.setdefault(mover.frames[t].label, []).append(pixels[t][y - 8 : y + 8, x - 8 : x + 8])
        for first, *others in by_label.values():
            compared += len(others)
            assert all(np.abs(first - other).max() <= 8 for other in others)
    assert compared >= 5


def test_single_frames_are_those_of_the_whole_video():
    whole, some = compose_moving("moving:3", SPEC, N), compose_moving("moving:3", SPEC, N, (0, 8, 17))
    assert [i.tobytes() for i in some.images] == [whole.images[t].tobytes() for t in (0, 8, 17)]
    assert some.movers == whole.movers


def answer_by_sight(film, text):
    """The answer to a question about motion, from what the frames show."""
    shown = {}
    for t, scene in enumerate(film.scenes):
        for shape in scene.shapes:
            shown.setdefault(shape.name, []).append((t, shape))
    if name := re.fullmatch(r"(?:Which way does|Does) the (\w+ \w+) move\?", text):
        (_, first), (_, last) = shown[name[1]][0], shown[name[1]][-1]
        x, y = np.subtract(last.center, first.center)
        if text.startswith("Does"):
            return "yes" if abs(x) + abs(y) > 4 else "no"
        assert min(abs(x), abs(y)) < 1 < max(abs(x), abs(y))
        return ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")
    latest, change = ("last" in text), []
    for before, after in pairwise(film.scenes):
        a, b = (Counter(s.name for s in scene.shapes) for scene in (before, after))
        change.append(sorted((b - a if latest else a - b).elements()))
    (name,) = next(names for names in (reversed(change) if latest else change) if names)
    return name if text.startswith("Which shape") else name.split()[0]


def test_every_answer_is_what_the_frames_show():
    seen = Counter()
    for i in range(40):
        film = compose_moving(f"asked:{i}", SPEC, N)
        for found in scenes.ask_video(film, Random(i)):
            q, scene = found.question, film.scenes[found.frame]
            if q.type in MOMENT_TYPES:
                when, text = re.fullmatch(r"At the (start|end), (.*)", q.text).groups()
                assert found.frame == (0 if when == "start" else N - 1)
                answer, boxes = CHECK[q.type](scene, text[0].upper() + text[1:])
                assert sorted(q.boxes) == sorted(boxes)
            else:
                answer = answer_by_sight(film, q.text)
                assert set(q.boxes) <= {s.box for s in scene.shapes}
                assert len(found.evidence[found.frame]) == 1
            assert q.answer == answer, q
            assert found.evidence[found.frame] == q.boxes
            seen[q.type] += 1
    assert set(seen) == set(scenes.VIDEO_TYPES)
    assert min(seen.values()) >= 10


def test_the_split_is_videos_and_no_frame_is_enough():
    some = list(scenes.load("video", n=40))
    differs = 0
    for sample in some:
        assert sample.fps == 8.0
        assert len(sample.images) == len(sample.scenes) == len(sample.evidence) == N
        assert sample.evidence[sample.asked] == sample.boxes
        assert sample.seed == sample.scenes[sample.asked].seed
        first, last = ({(s.name, s.label) for s in sample.scenes[t].shapes} for t in (0, N - 1))
        differs += first != last
    assert differs >= 0.8 * len(some)
    for kind in ("direction", "moves"):
        answers = Counter(s.answer for s in scenes.load("video", n=160) if s.type == kind)
        assert max(answers.values()) <= 0.75 * sum(answers.values())
