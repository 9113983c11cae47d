"""Every question's answer and boxes, checked against the scene by code that shares nothing with the asker."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import combinations
from random import Random

import numpy as np
import pytest

from foveate import scenes
from foveate.scenes.palette import COLORS

PLURAL = re.compile(r"How many (?:(?P<color>\w+) )?(?P<kind>\w+)s are there\?")
AHEAD = {"left of": 180, "right of": 0, "above": -90, "below": 90}


def by_label(scene, label):
    (found,) = [s for s in scene.shapes if s.label == label]
    return found


def by_name(scene, name):
    (found,) = [s for s in scene.shapes if f"{s.color} {s.shape}" == name]
    return found


def by_key(scene, key):
    (found,) = [f for f in scene.fields if f.key == key]
    return found


def bearing(a, b):
    """Degrees from a to b, 0 is right, 90 is down."""
    (ax, ay), (bx, by) = [((s.box[0] + s.box[2]) / 2, (s.box[1] + s.box[3]) / 2) for s in (a, b)]
    return math.degrees(math.atan2(by - ay, bx - ax))


def turn(a, b):
    return abs((a - b + 180) % 360 - 180)


def check_read_shape(scene, text):
    shape = by_name(scene, re.search(r"the (\w+ \w+)\?", text)[1])
    if kind := re.match(r"What (number|letter)", text):
        assert (kind[1] == "number") == shape.label.isdigit()
    return shape.label, [shape.box]


def check_color_of(scene, text):
    kind, label = re.search(r"is the (\w+) marked (\w+)\?", text).groups()
    shape = by_label(scene, label)
    assert kind in ("shape", shape.shape)
    return shape.color, [shape.box]


def check_shape_of(scene, text):
    shape = by_label(scene, re.search(r"(\w+)\?", text)[1])
    return shape.shape, [shape.box]


def check_read_field(scene, text):
    key = re.search(r"(?:What is the (\w+)\?|shown for (\w+)\?|Read the (\w+) field)", text)
    field = by_key(scene, next(k for k in key.groups() if k))
    return field.value, [field.box]


def check_field_of(scene, text):
    value = re.search(r"(\w+)\?", text)[1]
    (field,) = [f for f in scene.fields if f.value == value]
    return field.key, [field.box]


def check_relational(scene, text):
    direction, name = re.fullmatch(r"What is (left of|right of|above|below) the (\w+ \w+)\?", text).groups()
    anchor = by_name(scene, name)
    near = [s for s in scene.shapes if s is not anchor and turn(bearing(anchor, s), AHEAD[direction]) < 49.9]
    assert len(near) == 1, "somebody could disagree about this question"
    assert turn(bearing(anchor, near[0]), AHEAD[direction]) < 25.1
    return f"{near[0].color} {near[0].shape}", [anchor.box, near[0].box]


def check_count(scene, text):
    color, kind = PLURAL.fullmatch(text).groups()
    found = [s for s in scene.shapes if color in (None, s.color) and kind in ("shape", s.shape)]
    return str(len(found)), [s.box for s in found or scene.shapes]


def check_exists(scene, text):
    color, kind = re.fullmatch(r"Is there any (\w+) (\w+)\?", text).groups()
    found = [s for s in scene.shapes if s.color == color and s.shape == kind]
    return "yes" if found else "no", [s.box for s in found or scene.shapes]


def check_read_cell(scene, text):
    key, row = re.fullmatch(r"(?:What is|Read) the (\w+) in row (\w)[?.]", text).groups()
    (cell,) = [c for c in scene.cells if (c.key, c.row) == (key, row)]
    return cell.value, [cell.row_box, cell.key_box, cell.value_box]


CHECK = {
    "read_shape": check_read_shape,
    "color_of": check_color_of,
    "shape_of": check_shape_of,
    "read_field": check_read_field,
    "field_of": check_field_of,
    "relational": check_relational,
    "count": check_count,
    "count_all": check_count,
    "exists": check_exists,
    "read_cell": check_read_cell,
}


@pytest.mark.parametrize("spec", ["test", "hard", "multi"])
def test_every_answer_and_box_agrees_with_the_scene(spec):
    seen = Counter()
    for i in range(60):
        scene, _ = scenes.compose(f"check:{i}", scenes.SPECS[spec])
        for q in scenes.ask(scene, Random(i)):
            answer, boxes = CHECK[q.type](scene, q.text)
            assert q.answer == answer, q
            assert sorted(q.boxes) == sorted(boxes), q
            assert set(q.targets) <= {f.value_box for f in scene.fields} | set(boxes)
            seen[q.type] += 1
    assert set(seen) == set(scenes.TYPES)
    assert min(seen.values()) >= 10


@pytest.mark.parametrize("split", ["val", "test", "hard", "multi", "large", "document", "dense"])
def test_samples_agree_with_the_scene_they_name(split):
    for sample in scenes.load(split, n=27):
        text = sample.question
        if split == "multi":
            number, text = re.fullmatch(r"In image (\d), (.*)", text).groups()
            assert int(number) == sample.asked + 1
            assert 2 <= len(sample.images) <= 4
            text = text[0].upper() + text[1:]
        answer, boxes = CHECK[sample.type](sample.scenes[sample.asked], text)
        assert (sample.answer, sorted(sample.boxes)) == (answer, sorted(boxes))
        assert sample.evidence[sample.asked] == sample.boxes
        assert not any(boxes for i, boxes in enumerate(sample.evidence) if i != sample.asked)
        assert sample.image.size == (sample.scenes[sample.asked].width, sample.scenes[sample.asked].height)
        assert sample.need == scenes.NEEDS[sample.type]
        assert sample.fps is None


def test_everything_on_a_page_lies_within_its_margins():
    for sample in scenes.load("document", n=30):
        scene = sample.scenes[0]
        boxes = [box for f in scene.fields for box in (f.key_box, f.value_box)]
        boxes += [box for c in scene.cells for box in (c.row_box, c.key_box, c.value_box)]
        assert min(b[0] for b in boxes) >= 0.09 * scene.width
        assert max(b[2] for b in boxes) <= 0.91 * scene.width
        assert max(b[3] for b in boxes) <= scene.height
        values = [f.value for f in scene.fields] + [c.value for c in scene.cells]
        assert len(set(values)) == len(values), "an answer must name one place"
        assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for a, b in combinations(set(boxes), 2))


def nearest_color(pixels):
    """Colour name of the most frequent palette colour among `pixels` `[N, 3]`."""
    palette = np.array(list(COLORS.values()), float)
    apart = np.abs(pixels[:, None].astype(float) - palette).sum(-1)
    close = apart.min(1) < 90
    votes = Counter(apart[close].argmin(1).tolist())
    return list(COLORS)[votes.most_common(1)[0][0]]


def test_what_the_description_says_is_in_the_pixels():
    for i in range(25):
        scene, image = scenes.compose(f"pixels:{i}", scenes.SceneSpec(noise=2.0))
        pixels = np.asarray(image)
        for shape in scene.shapes:
            x0, y0, x1, y1 = (int(v) for v in shape.box)
            margin = (x1 - x0) // 4
            inside = pixels[y0 + margin : y1 - margin, x0 + margin : x1 - margin].reshape(-1, 3)
            assert nearest_color(inside) == shape.color
        for field in scene.fields:
            for box in (field.key_box, field.value_box):
                x0, y0, x1, y1 = (round(v) for v in box)
                patch = pixels[y0:y1, x0:x1].astype(int).mean(-1)
                assert patch.max() - patch.min() > 90, "a field's box must hold ink on paper"
