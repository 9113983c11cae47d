"""What lmms-eval's own functions return on tricky strings: writes the fixture, or counts where ours return otherwise.

    python lmms_eval_reference.py write                   # lmms_eval.json beside this file; needs lmms-eval only
    python lmms_eval_reference.py compare --count 60000   # needs lmms-eval and foveate

The README beside it says which version of lmms-eval wrote the fixture.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

Case = tuple[str, list[str]]

NAMES = ("exact_match", "vqa_accuracy", "vqav2", "anls", "relaxed_accuracy")
_WORDS = """
    red Red RED blue yes no none zero one two ten three a an the A The dog dogs dog's don't dont Dont can't cant
    it's its isn't isnt let's lets she's shes somebody'd somebodyd somebody'd've somebodyd've couldn't've
    couldntve couldnt've y'all yall y'all'll yall'll I'm Im I've ive o'clock oclock 'ow's'at ow's'at 'twas twas
    we'll well hell he'll their C++ C C# U.S. U.S.A e.g. Mr. St. 3rd 2nd caf\u00e9 cafe\u0301 na\u00efve
    \u0130stanbul istanbul stra\u00dfe STRASSE \ufb01sh fish \u6771\u4eac \uff13 \uff21\uff22\uff23 \u0663 \u00bd
    \u00b2 5\u00b2 \u212b \u2019s it\u2019s \u2212 \u2212 5 x-ray x ray t-shirt left/right left right inf nan -inf
    infinity NaN 1e5 1E5 1e-3 1_000 0x10 +5 -5 --5 . .. ... , ! ? $5 5$ #1 & @ * ' " `` '' ^ ~ |
"""
_NUMBERS = """
    0 0.0 -0 00 0% 1 1.0 1. 1.05 .5 0.5 5 5.0 5% 5 % 0.05 50% 95 100 105 105.1 94.9 1,000 1000 1,000.5 1,00 1,,000
    1.000 1,5 10,000,000 1e2 100% 1e400 -1e400 5%% %5 % 3 3.5 3,5 2019 2,019 20.19 100.0 99.99 1000000
"""
WORDS, NUMBERS = _WORDS.split(), _NUMBERS.split()
MARKS = list(";/[]\"{}()=+\\_-><@`,?!.'%:*&^$#~|")
SPACES = [" ", " ", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\x1c", "\x00", ""]


def text(source: random.Random) -> str:
    """A short text of words, numbers, marks and white space of every kind."""
    if source.random() < 0.25:
        return source.choice(NUMBERS)
    parts = []
    for _ in range(source.choice((0, 1, 1, 1, 2, 2, 3, 4, 7))):
        kind = source.random()
        parts.append(source.choice(WORDS if kind < 0.6 else NUMBERS if kind < 0.75 else MARKS))
        parts.append(source.choice(SPACES if source.random() < 0.7 else MARKS))
    if source.random() < 0.02:
        parts.append("a. " * source.choice((31, 32, 33, 40)))
    if parts and source.random() < 0.6:
        parts.pop()
    return "".join(parts)


def changed(given: str, source: random.Random) -> str:
    """The text, or one that a metric may or may not take for the same."""
    kind = source.randrange(14)
    place = source.randrange(len(given) + 1)
    if kind == 0:
        return source.choice((given.upper(), given.lower(), given.title(), given.swapcase(), given.casefold()))
    if kind == 1:
        return given[:place] + source.choice(MARKS) + given[place:]
    if kind == 2:
        return given[:place] + source.choice(SPACES) + given[place:]
    if kind == 3:
        return given[:place] + given[place + 1 :]
    if kind == 4:
        return given + source.choice((".", "%", "..", " .", ",", "'s", "?", "\n", " ", "\x00"))
    if kind == 5:
        return source.choice(("the ", "a ", "The ", " ", "$", "+", "-")) + given
    if kind == 6:
        return given.replace("'", source.choice(("", "\u2019", "''")))
    if kind == 7:
        return given.replace(",", source.choice(("", ".", ", ")))
    if kind == 8:
        return given.replace(source.choice(("one", "two", "ten", "none")), source.choice(("1", "2", "10", "0")))
    return given


def cases(seed: int, count: int) -> Iterator[Case]:
    """Random predictions with references, most of them near one another."""
    source = random.Random(seed)
    for _ in range(count):
        base = text(source)
        answers = []
        for _ in range(source.choice((1, 1, 2, 3, 5, 10, 10))):
            fresh = source.random() < 0.3
            answers.append(text(source) if fresh else changed(base, source))
        near = base if source.random() < 0.7 else source.choice(answers)
        for _ in range(source.choice((0, 1, 1, 2))):
            near = changed(near, source)
        yield near if source.random() < 0.9 else text(source), answers


def reference(prediction: str, answers: list[str]) -> list[float]:
    """lmms-eval's scores in the order of `NAMES`."""
    from lmms_eval.api.metrics import anls, exact_match_hf_evaluate
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness
    from lmms_eval.tasks.ok_vqa.utils import ok_vqa_process_results
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results
    from lmms_eval.tasks.vizwiz_vqa.utils import vizwiz_vqa_process_results
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results

    exact = [
        exact_match_hf_evaluate([prediction], [answer], ignore_case=True, ignore_punctuation=True)["exact_match"]
        for answer in answers
    ]
    people = [
        function({"answers": list(answers), "question_id": 0}, [prediction])["exact_match"]
        for function in (textvqa_process_results, ok_vqa_process_results, vizwiz_vqa_process_results)
    ]
    if len(set(people)) != 1:
        raise SystemExit(f"TextVQA, OK-VQA and VizWiz disagree about {prediction!r}, {answers!r}: {people}")
    numbered = [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]
    v2 = vqav2_process_results({"answers": numbered, "question_id": 0}, [prediction])["exact_match"]
    relaxed = any(relaxed_correctness(prediction, answer) for answer in answers)
    nearest = anls(answers, [prediction])["anls"]
    return [float(any(exact)), float(people[0]), float(v2), float(nearest), float(relaxed)]


def write(path: Path, seed: int, count: int) -> None:
    """Write the fixture: rows `[prediction, answers, scores]`, scores in the order of `names`."""
    rows = [[prediction, answers, reference(prediction, answers)] for prediction, answers in cases(seed, count)]
    head = {"lmms_eval": version("lmms_eval"), "seed": seed, "names": NAMES}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    path.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def compare(seed: int, count: int, prefix: str) -> int:
    """Print how many scores differ, per metric, and the first few."""
    from foveate.scoring import metric

    names = [name for name in NAMES if prefix or name != "vqav2"]
    differ, matches, shown = dict.fromkeys(names, 0), dict.fromkeys(names, 0), 0
    for prediction, answers in cases(seed, count):
        wanted = dict(zip(NAMES, reference(prediction, answers), strict=True))
        for name in names:
            if name == "vqa_accuracy" and not prefix and len(answers) < 4:
                continue
            found = metric(prefix + name)(prediction, answers)
            matches[name] += wanted[name] > 0
            differ[name] += found != wanted[name]
            if found != wanted[name] and shown < 10:
                shown += 1
                print(f"{prefix}{name} {prediction!r} {answers!r}: {found} here, {wanted[name]} there", file=sys.stderr)
    print(f"lmms-eval {version('lmms_eval')}, seed {seed}, {count:,} cases, '{prefix}' metrics")
    for name in names:
        print(f"  {name}: {differ[name]:,} differ ({matches[name]:,} score above 0 there)")
    return sum(differ.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "compare"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--ours", action="store_true", help="compare our own definitions instead of the lmms: ones")
    given = parser.parse_args()
    if given.what == "write":
        write(Path(__file__).with_name("lmms_eval.json"), given.seed, given.count)
    else:
        sys.exit(compare(given.seed, given.count, "" if given.ours else "lmms:") > 0 and not given.ours)


if __name__ == "__main__":
    main()
