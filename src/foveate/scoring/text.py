"""When two spellings are one text: Unicode forms, words in any script, numbers."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache


def spelled(text: str) -> str:
    """One spelling of what looks alike; case and white space stay.

    Full-width and half-width forms become the ordinary characters (by Unicode's own mapping, so that `²` stays apart
    from `2`, as it does not with NFKC), typographic quotes and minus signs the ones of ASCII, invisible characters
    vanish, and what is left is in Unicode's normal form C.
    """
    if not text.isascii():
        text = "".join(map(_ordinary, text))
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """`spelled`, without case (Unicode's canonical caseless form), every run of white space as one space, stripped."""
    bare = unicodedata.normalize("NFD", spelled(text)).casefold()
    return unicodedata.normalize("NFC", " ".join(bare.split()))


def plain(text: str) -> str:
    """`folded`, without full stops at the end, unless nothing else is there."""
    text = folded(text)
    return text.rstrip(" .。") or text


def tokens(text: str) -> list[str]:
    """Words and numbers of a folded text, in order; punctuation is left out.

    A number is one token with its sign, decimals and thousands separators (`-3.5`, `1,000` as `1000`, `10:30`, `3/4`),
    so that 3 is no token of 3.5; a word keeps what makes it another one (`c++`, `c#`, `a+`). Scripts that are written
    without spaces, and Korean, whose particles are attached, give a token per character with its marks.
    """
    text = ungrouped(folded(text))
    return [token for found in _TOKEN.finditer(_shape(text)) for token in _parts(text[found.start() : found.end()])]


def ungrouped(text: str) -> str:
    """Numbers without the commas between their groups of digits (`1,000`, `12,34,567`); other commas stay."""
    return _GROUPED.sub(lambda found: found[0].replace(",", ""), text)


def number(text: str) -> Decimal | None:
    """The finite number that a text is, exactly (`-0.5`, `1,040.5`, `2e-3`, `5%` as 0.05); None for any other text."""
    found = _NUMBER.fullmatch(ungrouped(plain(text)))
    if found is None:
        return None
    value = Decimal(found[1])
    return value / 100 if found[2] else value


_NUMBER = re.compile(r"([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d{1,3})?)(?: ?(%))?")
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d|,\d)")

# over the text's shape: `a` letter, `m` mark, `0` digit, `x` letter of a script without spaces, ` ` anything else
_TOKEN = re.compile(
    r"""
    (?:(?<![a0x)m])-(?=\.?0))?             # a sign, not a hyphen or a range
    (?:\.(?=0)(?<![a0m]\.)0+[a0m]*         # .5
    |[a0][a0m]*(?:(?<=0)[.,:/]0[a0m]*)*)   # a word, or a number with what holds its digits together
    (?:(?<=[am])(?:\+\++|\#|\+(?![a0])))?  # C++, C#, A+
    |xm*
    """,
    re.VERBOSE,
)


def _parts(token: str) -> list[str]:
    """The token, or the members of a list without spaces (`1,2,3`; with one comma it may be a decimal)."""
    return token.split(",") if token.count(",") > 1 else [token]


def _shape(text: str) -> str:
    return "".join(map(_kind, text))


@lru_cache(maxsize=8192)
def _kind(character: str) -> str:
    if character in "+#-.,:/)":
        return character
    category = unicodedata.category(character)
    if category == "Nd":
        return "0"
    if category[0] == "M":
        return "m"
    if character == "_" or character.isalnum():
        return "x" if any(low <= ord(character) <= high for low, high in _UNSPACED) else "a"
    return " "


@lru_cache(maxsize=8192)
def _ordinary(character: str) -> str:
    if character in _LOOKS:
        return _LOOKS[character]
    if unicodedata.decomposition(character).startswith(("<wide>", "<narrow>")):
        return unicodedata.normalize("NFKC", character)
    return character


_LOOKS = dict.fromkeys("\u2018\u2019\u201b\u2032", "'") | dict.fromkeys("\u201c\u201d\u201f\u2033", '"')
_LOOKS |= dict.fromkeys("\u2212\u2010\u2011", "-")
# zero-width space and no-break space, word joiner, soft hyphen
_LOOKS |= dict.fromkeys("\u200b\ufeff\u2060\u00ad", "")

# Thai, Lao, Myanmar, Hangul jamo, Khmer, kana to CJK extension A, ideographs, Hangul, compatibility, further planes
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x3005, 0x4DBF), (0x4E00, 0x9FFF),
    (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
