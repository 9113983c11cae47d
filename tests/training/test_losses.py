"""Losses, rewards and targets against the official implementation (values and gradients)."""

import json
import math

import pytest
import torch
from torch import Tensor

from foveate.data import boxes
from foveate.scoring import METRICS
from foveate.scoring.replies import judge_score
from foveate.training import losses, rewards
from tests.golden_files import assert_close, assert_gradient_close, golden_path, golden_tensors

from . import rl_losses

MASK_CASES = "one_sample", "two_samples", "three_samples_random_mask", "empty_mask", "full_mask"
KD_WEIGHT = 0.04
FORMATS = {"xyxy": "pixel", "xywh": "pixel_xywh", "xyxy_norm1000": "thousandths"}


def ragged(tensors: dict[str, Tensor], prefix: str) -> list[Tensor]:
    count = sum(key.startswith(prefix + ".") for key in tensors)
    return [tensors[f"{prefix}.{i}"].clone() for i in range(count)]


def with_grad(tensors: list[Tensor]) -> list[Tensor]:
    return [t.requires_grad_() for t in tensors]


def reference(name: str) -> list[dict]:
    return json.loads(golden_path("gp_losses/rewards_and_targets.json").read_text())[name]


@pytest.mark.parametrize("case", MASK_CASES)
def test_mask_loss(case: str) -> None:
    golden = golden_tensors("gp_losses/mask_losses.safetensors")
    logits, masks = with_grad(ragged(golden, f"{case}/logits")), ragged(golden, f"{case}/mask")
    assert_close(losses.dice_loss(logits, masks), golden[f"{case}/dice"][0], atol=1e-6)
    assert_close(losses.bce_loss(logits, masks), golden[f"{case}/bce"][0], atol=1e-6)
    assert_close(losses.mask_loss(logits, masks, 0.5, 0.5), golden[f"{case}/mask_default"][0], atol=1e-6)
    assert_close(losses.mask_loss(logits, masks, 1.0, 1.0), golden[f"{case}/mask_d1.0_b1.0"][0], atol=1e-6)
    loss = losses.mask_loss(logits, masks)
    assert_close(loss, golden[f"{case}/mask_d1.0_b0.1"][0], atol=1e-6)
    loss.backward()
    for i, x in enumerate(logits):
        assert_gradient_close(f"{case}.{i}", x.grad, golden[f"{case}/grad_d1.0_b0.1.{i}"])


def test_deep_supervision_and_confusion() -> None:
    golden = golden_tensors("gp_losses/mask_losses.safetensors")
    logits, masks = ragged(golden, "deep/logits"), ragged(golden, "deep/mask")
    assert_close(losses.mask_loss(logits, masks), golden["deep/loc_loss"][0], atol=1e-6)
    assert losses.confusion(logits, masks).tolist() == golden["deep/confusion_tp_fp_fn_tn"].tolist()


def test_worked_example_of_the_mask_loss() -> None:
    logits, masks = [torch.tensor([[2.0, -1.0, 0.0]])], [torch.tensor([1, 0, 1])]
    assert losses.mask_loss(logits, masks).item() == pytest.approx(0.281123, abs=1e-6)


@pytest.mark.parametrize("case", ["one_reward", "two_rewards", "all_equal"])
def test_policy_and_kl_loss(case: str) -> None:
    golden = golden_tensors("gp_losses/rl_losses.safetensors")
    advantages = rl_losses.group_advantages(golden[f"{case}/scores"])
    assert_close(advantages, golden[f"{case}/advantages"], atol=1e-6)
    logps, refs = ragged(golden, f"{case}/logps"), ragged(golden, f"{case}/ref_logps")

    policy = rl_losses.policy_loss(with_grad(logps), advantages)
    policy.backward()
    assert_close(policy, golden[f"{case}/reward_loss"][0], atol=1e-6)
    for i, x in enumerate(logps):
        assert_gradient_close(f"policy.{i}", x.grad, golden[f"{case}/grad_reward.{i}"])
        x.grad = None

    kl = KD_WEIGHT * rl_losses.kl_loss(logps, refs)
    kl.backward()
    assert_close(kl, golden[f"{case}/kd_loss"][0], atol=1e-6)
    for i, x in enumerate(logps):
        assert_gradient_close(f"kl.{i}", x.grad, golden[f"{case}/grad_kd.{i}"])


def test_completion_mask() -> None:
    golden = golden_tensors("gp_losses/rl_losses.safetensors")
    mask = rl_losses.completion_mask(golden["completion/ids"], 2)
    assert mask.long().tolist() == golden["completion/mask_eos2"].tolist()


@pytest.mark.parametrize(("case", "cut"), [("repad", False), ("repad_max6", True)])
def test_left_padding(case: str, cut: bool) -> None:
    golden = golden_tensors("gp_losses/rl_losses.safetensors")
    max_length = golden[f"{case}/out_mask"].shape[1] if cut else None
    index, valid = rl_losses.left_pad_index(golden["repad/in_mask"], max_length)
    assert valid.long().tolist() == golden[f"{case}/out_mask"].tolist()
    assert torch.equal(rl_losses.left_pad(golden["repad/in_ids"], index, valid), golden[f"{case}/out_ids"])
    assert torch.equal(rl_losses.left_pad(golden["repad/in_embeds"], index, valid), golden[f"{case}/out_embeds"])
    positions = [rl_losses.left_pad(axis, index, valid) for axis in golden["repad/in_pos"]]
    assert torch.equal(torch.stack(positions), golden[f"{case}/out_pos"])


def test_completion_mask_moves_with_its_tokens() -> None:
    """The official code cuts the moved completion mask at its right end, not per row; ours stays aligned."""
    golden = golden_tensors("gp_losses/rl_losses.safetensors")
    mask, length = golden["repad/in_mask"], golden["completion/mask_eos2"].shape[1]
    completion = torch.zeros_like(mask)
    completion[:, -length:] = golden["completion/mask_eos2"]
    index, valid = rl_losses.left_pad_index(mask)
    moved = rl_losses.left_pad(completion, index, valid)
    assert torch.equal(moved, golden["repad/out_completion_mask"])
    official = golden["repad_max6/out_completion_mask"]
    width = official.shape[1]
    assert torch.equal(moved[:, :width], official)
    index, valid = rl_losses.left_pad_index(mask, width)
    cut = rl_losses.left_pad(completion, index, valid)
    kept = [row[real.bool()][:width].sum().item() for row, real in zip(completion, mask, strict=True)]
    assert cut.sum(1).tolist() == kept


# the official parser cuts 1.5 to 1 and wants a space; a number out of range is no score, and a space is none either
OTHER_SCORES = {"SCORE: 1.5": None, "score:0.7": 0.7}


def test_rewards() -> None:
    for case in reference("precision_match"):
        assert METRICS["exact_match"](case["completion"], [case["answer"]]) == case["score"]
    for case in reference("single_choice"):
        assert METRICS["multiple_choice"](case["completion"], [case["answer"]]) == case["score"]
    for case in reference("one_box"):
        assert rewards.box_iou(case["completion"], case["answer"]) == pytest.approx(case["iou"], abs=1e-9)
        assert rewards.box_format(case["completion"]) == case["format"]
    for case in reference("llm_score_parsing"):
        if case["text"] in OTHER_SCORES:
            assert judge_score(case["text"]) == OTHER_SCORES[case["text"]]
        else:  # what says no score is 0 there and no reward here
            assert (judge_score(case["text"]) or 0.0) == pytest.approx(case["score"])


def test_a_box_that_is_none_has_no_overlap() -> None:
    assert rewards.box_iou("[1.2.3, 4, 5, 6]", "[1, 2, 3, 4]") == 0.0


def test_box_masks() -> None:
    for case in reference("bbox_to_token_mask"):
        mask = boxes.box_mask(case["normed_bboxes"], *case["grid_hw"])
        assert mask.int().tolist() == case["mask"]


def test_box_normalisation() -> None:
    for case in reference("norm_bboxes"):
        out = boxes.normalize_boxes(case["bboxes"], FORMATS[case["type"]], width=case["width"], height=case["height"])
        assert torch.allclose(torch.tensor(out), torch.tensor(case["out"]))


@pytest.mark.parametrize(
    ("box", "complaint"),
    [
        ([0.1, 0.1, 0.1, 0.4], "empty"),
        ([0.5, 0.1, 0.4, 0.4], "empty"),
        ([math.nan, 0.1, 0.4, 0.4], "four numbers"),
        ([0.1, 0.1, 1.4, 0.4], "outside"),
        ([-0.2, 0.1, 0.4, 0.4], "outside"),
        ([0.1, 0.1, 0.4], "four numbers"),
        (["a", 0, 1, 1], "four numbers"),
    ],
)
def test_bad_boxes_are_refused(box: list, complaint: str) -> None:
    with pytest.raises(boxes.BoxError, match=complaint):
        boxes.check_boxes([box])


def test_unknown_box_format() -> None:
    with pytest.raises(boxes.BoxError, match="pixel_xywh"):
        boxes.normalize_boxes([[0, 0, 1, 1]], "yxyx")  # type: ignore[arg-type]


def test_keep_rate_presses_to_the_target() -> None:
    low, high = torch.full((4,), -9.0, requires_grad=True), torch.full((6,), 1.0, requires_grad=True)
    losses.keep_rate_loss([low, high], target=0.1).backward()
    assert low.grad is not None
    assert (low.grad < 0).all()
    assert high.grad is not None
    assert (high.grad > 0).all()
    exact = torch.full((4,), 0.1).logit()
    assert losses.keep_rate_loss([exact], target=0.1).item() == pytest.approx(0, abs=1e-6)


def test_distillation_loss_is_zero_only_for_equal_distributions() -> None:
    a, b = torch.randn(5, 11), torch.randn(5, 11)
    assert losses.distillation_loss(a + 3, a).item() == pytest.approx(0, abs=1e-6)
    p = a.softmax(-1)
    by_hand = (p * (p.log() - b.log_softmax(-1))).sum(-1).mean()
    assert losses.distillation_loss(b, a).item() == pytest.approx(by_hand.item(), rel=1e-5)
