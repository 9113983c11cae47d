"""The letter that a free-text answer to a multiple-choice question chooses."""

from __future__ import annotations

import re

from foveate.scoring.text import spelled


def choice(text: str) -> str | None:
    """The upper-case letter chosen, or None if the text chooses none or two.

    Tried in this order, after markup is taken off (Markdown, HTML, TeX): the content of the last `\\boxed{}` or
    `<answer>`; the letter of the last statement (`the answer is B`, `option: b`, `my choice is (A)`), unless another
    one opens the text; the letter that opens it (`B`, `B.`, `(b) because`, `B` and a line break); the only option that
    is mentioned (`option B`). `A or B` chooses none, nor does a repeated list of the options; "it is a dog" is not A.
    """
    framed = _BOXED.findall(text) or _TAGGED.findall(text)
    if framed:
        return _opening(unmarked(framed[-1]))
    text = unmarked(text)
    stated, opened = list(_STATED.finditer(text)), _opening(text)
    if stated:
        letter = _letter(stated[-1])
        return letter if opened in (None, letter) and not _ALTERNATIVE.match(text, stated[-1].end()) else None
    if opened or _OPENING.match(text):
        return opened
    mentioned = list(_MENTIONED.finditer(text))
    letters = {_letter(found) for found in mentioned}
    if len(letters) != 1 or any(_ALTERNATIVE.match(text, found.end()) for found in mentioned):
        return None
    return letters.pop()


def unmarked(text: str) -> str:
    """The text without Markdown, HTML tags and TeX commands, one spelling of alike characters (`text.spelled`).

    Runs of white space become one space or one line break, so that no pattern here takes more than linear time on them.
    """
    text = "\n".join(spelled(text).splitlines())
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = _MARKS.sub("", _TEX.sub("", text))
    return re.sub(r" ?\n[ \n]*", "\n", re.sub(r"[^\S\n]+", " ", text))


_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_BREAK = re.compile(r"<br\s*/?>|</?(?:p|div|li)>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_TEX = re.compile(r"\\(?:boxed|fbox|text(?:bf|it|rm)?|math(?:bf|rm|it)|[()\[\]])")
_MARKS = re.compile(r"[*_`$#{}]|^[ \t]*>+|\\(?=\W)", re.MULTILINE)

# an article or a pronoun is a letter too: `A` and `I` count only where no sentence goes on with them
_END = r"(?=\s*\Z|\s*\n|\s*[.,;:!?)\]\"'](?!\w)|\s+(?:because|since|as|is|not|or|and)\b)"
_BARE = rf"(?:[b-hj-zB-HJ-Z](?![\w'])|[aiAI]{_END})"

_VERB = r"(?:[:=]|(?:is|was|would be|should be|must be)\b[ \t]*[:=]?)"
_LETTER = rf"[\"']?(?:[(\[]\s*(?P<bracketed>[A-Za-z])\s*[)\]]|(?P<bare>{_BARE}))"
_STATED = re.compile(
    rf"\b(?i:answer|choice|option)\b[\"']?\s*(?i:{_VERB})\s*(?i:(?:the )?(?:option|choice)\b)?\s*{_LETTER}"
)
_MENTIONED = re.compile(rf"\b(?i:answer|option|choice)\s*{_LETTER}|\b(?i:option|choice)\s+(?P<named>[AI])(?![\w'])")
_OPENING = re.compile(
    r"\s*[\"']?(?:[(\[]\s*(?P<bracketed>[A-Za-z])\s*[)\]]|(?P<bare>[A-Za-z])"
    r"(?=\s*\Z|[ \t]*[\n(]|[.):,;\]\"'](?!\w)|[ \t]+(?:because|since|is|or|and|not)\b|[/&]))"
)
# a second letter beside the first
_ALTERNATIVE = re.compile(
    rf"[\s.)\]\"']*(?:[,/&+|;]|(?:or|and|and/or)\b)+\s*(?:(?:or|and|maybe|perhaps|possibly|also|option|choice)\s+)*"
    rf"(?:[(\[]\s*[A-Za-z]\s*[)\]]|{_BARE})|[\s.:)\]]*[(\[]?[A-Za-z][)\].]*\s*\Z",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^[ \t]*[(\[]?([A-Za-z])[.):\]](?!\w)|^[ \t]*([A-Z])[ \t]*$", re.MULTILINE)
_LISTED = re.compile(r"\s*[(\[]?[Aa][.):\]].*?(?<!\w)[(\[]?[Bb][.)\]](?=\s)", re.DOTALL)


def _opening(text: str) -> str | None:
    found = _OPENING.match(text)
    if found is None or _ALTERNATIVE.match(text, found.end()) or _LISTED.match(text):
        return None
    labels = {(one or other).upper() for one, other in _LABEL.findall(text)}
    letter = _letter(found)
    return letter if labels <= {letter} else None


def _letter(found: re.Match[str]) -> str:
    return next(letter for letter in found.groups() if letter).upper()
