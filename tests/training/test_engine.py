"""Training and the pruning engine agree: same logits, same kept tokens, same answers."""

import pytest
import torch

import foveate
from foveate import zoo
from foveate.data.reading import read_rows
from foveate.data.rows import Rules
from foveate.families import adapt
from foveate.glimpse import GlimpseModule
from foveate.inference.loading import load
from foveate.methods.glimpse_prune import GlimpsePrune
from foveate.training.glimpse.collate import Collator
from foveate.training.glimpse.model import GlimpseForTraining
from foveate.zoo import SYSTEM


@pytest.mark.parametrize(("split", "threshold", "cap"), [("val", 0.5, None), ("val", 0.2, 0.25), ("multi", 0.5, 0.1)])
def test_evaluation_is_what_the_engine_does(split: str, threshold: float, cap: float | None) -> None:
    """Accuracy measured with gates in one teacher-forced pass is that of pruned greedy generation."""
    model, processor = load(zoo.DEFAULT, dtype=torch.float32)
    collator = Collator(adapt(model), processor, system=SYSTEM)
    examples = read_rows(f"scenes:{split}", Rules(), limit=8)[:]
    torch.manual_seed(1)
    module = GlimpseModule.for_model(model, threshold=threshold, max_keep=cap).eval()
    batch = collator(list(examples))
    with GlimpseForTraining(model, module) as training:
        measured = training.eval()(**batch)
    prompts = collator.prompts(list(examples))
    start = prompts["input_ids"].shape[1]

    def answered() -> list[float]:
        ids = model.generate(**prompts, max_new_tokens=8, do_sample=False)
        texts = collator.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
        return [float(text == example.answer) for text, example in zip(texts, examples, strict=True)]

    with foveate.prune(model, GlimpsePrune(module)) as trace:
        assert measured["accuracy"].tolist() == answered()
    unpruned = answered()
    assert measured["accuracy_unpruned"].tolist() == unpruned
    assert sum(unpruned) > 0
    kept = [len(group.alive_at(model.config.text_config.num_hidden_layers)) for group in trace.prefills[0].groups]
    totals = [sum(grid.size for grid in group.grids) for group in trace.prefills[0].groups]
    assert measured["kept"].tolist() == pytest.approx([k / n for k, n in zip(kept, totals, strict=True)])
    assert sum(kept) < sum(totals)
