"""What transformers 5.17, the oldest that is allowed, does otherwise than 5.23: tests that cannot pass there, and why.

`make lowest` runs them as expected failures; docs/testing.md repeats the reasons.
"""

from __future__ import annotations

LATER_IMAGE = "stock code of 5.17 misplaces the image of a later turn, or refuses it"
BEAMS = "stock code of 5.17 mixes up several images of one row under beams"
CHUNKS = "chunked prefill is another call in 5.17, and fails in stock code"
GEMMA = "5.17 knows no num_frames_per_video"
TORCHVISION = "this processor wants torchvision in 5.17"

KNOWN = {
    "engine/test_conversations.py::test_a_cropped_image_turn_never_was[qwen": LATER_IMAGE,
    "engine/test_conversations.py::test_a_random_chat_equals_the_masked_reference": LATER_IMAGE,
    "engine/test_conversations.py::test_a_turn_that_failed_was_never_there[qwen": LATER_IMAGE,
    "engine/test_conversations.py::test_assisted_decoding_in_a_later_turn_is_refused[qwen": "5.17 gives the assistant "
    "another mask; it is refused, in other words",
    "engine/test_generate.py::test_beam_search[llava": BEAMS,
    "engine/test_inputs.py::test_chunked_prefill": CHUNKS,
    "engine/test_multiturn.py::test_an_image_of_a_later_turn_is_pruned_too": LATER_IMAGE,
    "engine/test_multiturn.py::test_padded_batch_with_images_in_both_turns": LATER_IMAGE,
    "engine/test_nothing_pruned.py::test_generate": CHUNKS,
    "engine/test_settings.py::test_chunked_prefill_is_refused_by_name": CHUNKS,
    "engine/test_tower_pruning.py::test_features_are_no_longer_silently_wrong_elsewhere": "the stock defect that is "
    "shown looks otherwise in 5.17",
    "families/test_finding.py::test_infeasible_types_are_refused_with_a_reason[vision-encoder": "no default "
    "configuration in 5.17",
    "families/test_finding.py::test_pools_of_left_out_images_are_left_out": "Molmo 2 came after 5.17",
    "families/test_overlay.py::test_the_kept_tokens_lie_on_the_object[idefics3": TORCHVISION,
    "families/test_signals.py::test_a_patch_is_read_at_the_token_that_it_makes[video-gemma4": GEMMA,
    "families/test_turns.py::test_an_image_of_a_later_turn_is_pruned_too": LATER_IMAGE,
    "families/test_turns.py::test_recurrent_states_go_on_with_an_image": LATER_IMAGE,
    "families/test_types.py::test_beams_are_pruned_alike": BEAMS,
    "families/test_videos.py::": GEMMA,
    "inference/test_stock_processors.py::": TORCHVISION,
    "inference/test_video_prompts.py::test_a_video_has_as_many_places_as_tokens[llava_next_video": "5.17 counts the "
    "places of a video otherwise",
}


def reason(node: str) -> str | None:
    """Why a test cannot pass with transformers 5.17, None if it can."""
    return next((why for start, why in KNOWN.items() if start in node), None)
