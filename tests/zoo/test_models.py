"""The shipped checkpoints: size, names, answers by stock `generate`."""

from __future__ import annotations

import pytest
import torch

from foveate import scenes, zoo
from foveate.errors import FoveateError
from foveate.inference.answer import Asker
from foveate.inference.batches import build_batch
from foveate.inference.loading import load
from recipes.zoo.evaluate import media, oracle, random_share, withhold


class Reader:
    def __init__(self, name):
        self.model, self.processor = load(name)

    def inputs(self, samples):
        return build_batch(self.model, self.processor, [(s.images, s.question) for s in samples])

    def generate(self, inputs):
        return [found.text for found in Asker(self.model, self.processor, 8).answer(inputs)]

    def answers(self, samples):
        return self.generate(self.inputs(samples))


@pytest.fixture(scope="module", params=zoo.names())
def reader(request):
    return Reader(request.param)


def test_names_resolve(tmp_path):
    assert zoo.DEFAULT in zoo.names()
    assert zoo.resolve(zoo.DEFAULT) == str(zoo.path("scenes-qwen2_5_vl"))
    assert zoo.resolve("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert zoo.resolve(str(tmp_path)) == str(tmp_path)
    with pytest.raises(FoveateError, match=r"installed: .*foveate/scenes-qwen2_5_vl"):
        zoo.resolve("foveate/scenes-gpt")


@pytest.mark.parametrize("name", zoo.names())
def test_weights_are_small_and_safe(name):
    folder = zoo.path(name)
    assert (folder / "model.safetensors").stat().st_size <= 15e6
    assert not [f for f in folder.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_it_answers(reader):
    samples = list(scenes.load("test", n=36))
    right = [a == s.answer for a, s in zip(reader.answers(samples), samples, strict=True)]
    assert sum(right) >= 0.75 * len(right)


def test_the_wide_model_answers_about_videos():
    """About twice as often as who knows the questions' types and answers but not the video (a third)."""
    asker = Asker.load("foveate/scenes-qwen2_5_vl-wide", 8)
    samples = list(scenes.load("video", n=16))
    inputs = asker.questions([(media(s), s.question) for s in samples])
    assert inputs["video_grid_thw"].tolist() == [[9, 16, 16]] * 16
    assert "pixel_values" not in inputs
    right = [found.text == s.answer for found, s in zip(asker.answer(inputs), samples, strict=True)]
    assert sum(right) >= 0.5 * len(right)


def test_a_batch_answers_as_its_rows_do(reader):
    samples = list(scenes.load("val", n=9))
    assert reader.answers(samples) == [reader.answers([s])[0] for s in samples]


def test_withholding_everything_but_the_evidence_differs_from_withholding_the_evidence(reader):
    samples = [s for s in scenes.load("test", n=90) if s.need == "local"][:24]
    inputs = reader.inputs(samples)

    def right(choose):
        answers = reader.generate(withhold(reader.model, inputs, samples, choose, seed=0))
        return sum(a == s.answer for a, s in zip(answers, samples, strict=True))

    def inverse(sample, grid, rng):
        return ~oracle(0.0)(sample, grid, rng)

    assert right(oracle(0.1)) > right(inverse) + 6


@torch.no_grad()
def test_withheld_tokens_are_as_good_as_dropped(reader):
    sample = scenes.load("test", n=1)[0]
    inputs = reader.inputs([sample])
    hidden = withhold(reader.model, inputs, [sample], random_share(0.3), seed=1)
    masked = reader.model(**hidden).logits[0, -1]

    kept = hidden["attention_mask"][0].bool()
    seen = {}

    def drop(module, args, kwargs):
        seen.update(kwargs)
        return args, kwargs | {
            "inputs_embeds": kwargs["inputs_embeds"][:, kept],
            "position_ids": hidden["position_ids"][..., kept],
            # written out, because stock models take gaps in the positions for packed sequences
            "attention_mask": torch.full((1, 1, int(kept.sum()), int(kept.sum())), -1e9).triu(1),
        }

    hook = reader.model.model.language_model.register_forward_pre_hook(drop, with_kwargs=True)
    dropped = reader.model(**inputs, use_cache=False).logits[0, -1]
    hook.remove()
    assert seen["inputs_embeds"].shape[1] == len(kept) > kept.sum()
    torch.testing.assert_close(masked, dropped, atol=2e-4, rtol=1e-4)
