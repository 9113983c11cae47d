"""What transformers 5.17, the oldest that is allowed, does otherwise than 5.23: tests that cannot pass there, and why.

`make lowest` runs them as expected failures; docs/testing.md repeats the reasons.
"""

from __future__ import annotations

import re

LATER_IMAGE = "stock code of 5.17 misplaces the image of a later turn, or refuses it"
BEAMS = "stock code of 5.17 mixes up several images of one row under beams"
CHUNKS = "chunked prefill is another call in 5.17, and fails in stock code"
GEMMA = "5.17 knows no num_frames_per_video"
TORCHVISION = "this processor wants torchvision in 5.17"

KNOWN = {
    r"engine/test_conversations.py::test_a_(cropped_image_turn_never_was|turn_that_failed).*qwen": LATER_IMAGE,
    r"engine/test_conversations.py::test_a_random_chat_equals_the_masked_reference": LATER_IMAGE,
    r"engine/test_conversations.py::test_assisted_decoding_in_a_later_turn.*qwen": "5.17 gives another mask, which is "
    "refused in other words",
    r"engine/test_generate.py::test_beam_search.*llava": BEAMS,
    r"engine/test_inputs.py::test_chunked_prefill": CHUNKS,
    r"engine/test_multiturn.py::test_(an_image_of_a_later_turn|padded_batch_with_images_in_both).*qwen": LATER_IMAGE,
    r"engine/test_nothing_pruned.py::test_generate.*qwen.*prefill_chunk_size": CHUNKS,
    r"engine/test_settings.py::test_chunked_prefill_is_refused_by_name": CHUNKS,
    r"engine/test_tower_pruning.py::test_features_are_no_longer_silently_wrong_elsewhere": "the stock defect that is "
    "shown looks otherwise in 5.17",
    r"families/test_finding.py::test_infeasible_types.*vision-encoder": "no default configuration in 5.17",
    r"families/test_finding.py::test_pools_of_left_out_images": "Molmo 2 came after 5.17",
    r"families/test_overlay.py::test_the_kept_tokens_lie_on_the_object.idefics3": TORCHVISION,
    r"families/test_turns.py::test_an_image_of_a_later_turn": LATER_IMAGE,
    r"families/test_turns.py::test_recurrent_states_go_on_with_an_image.qwen3_5": LATER_IMAGE,
    r"families/test_types.py::test_beams_are_pruned_alike.(llava_pixtral|mistral3)": BEAMS,
    r"families/test_(videos|signals).py::.*gemma4": GEMMA,
    r"inference/test_stock_processors.py::.*(hunyuan_vl|idefics|ovis2|smolvlm)": TORCHVISION,
    r"inference/test_stock_processors.py::test_types_without_such_a_processor_are_named": TORCHVISION,
    r"inference/test_video_prompts.py::test_a_video_has_as_many_places.*llava_next_video": "5.17 counts a video's "
    "places otherwise",
}


def reason(node: str) -> str | None:
    """Why a test cannot pass with transformers 5.17, None if it can."""
    return next((why for pattern, why in KNOWN.items() if re.search(pattern, node)), None)
