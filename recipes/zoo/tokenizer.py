"""The zoo's tokenizer: a byte-level BPE of at most 640 entries with Qwen's special tokens and chat shape."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from foveate.scenes import Field, Scene, Shape, ask, name_image
from foveate.scenes.palette import COLOR_NAMES, KEYS, SHAPES
from foveate.zoo import SYSTEM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIAL += ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
VOCABULARY = 640
# Words keep their leading space, digits stand alone: a label's characters are read one at a time.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build() -> PreTrainedTokenizerFast:
    """Trains the tokenizer on the wording of the scenes; always gives the same one."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=40,
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    bpe.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus() -> Iterator[str]:
    rng = Random(0)
    for i in range(4000):
        for question in ask(_invented(rng), rng):
            # Labels and values stay out: they are to be spelled character by character.
            if question.type == "read_shape" or question.type == "read_field":
                yield "user\n" + question.text
            else:
                yield "assistant\n" + question.answer
                yield question.text
            if i % 5 == 0:
                yield name_image(question.text, rng.randrange(4))
        if i % 10 == 0:
            yield "system\n" + SYSTEM


def _invented(rng: Random) -> Scene:
    """A scene without a picture: only its words matter here."""
    scene = Scene("", 1, 1)
    for _ in range(4):
        box = (rng.random(), rng.random(), rng.random(), rng.random())
        scene.shapes.append(Shape(rng.choice(COLOR_NAMES), rng.choice(SHAPES), str(rng.randint(1, 99)), box))
    for key in rng.sample(KEYS, 3):
        scene.fields.append(Field(key, str(rng.randint(10, 99)), (0, 0, 1, 1), (0, 0, 1, 1)))
    return scene
