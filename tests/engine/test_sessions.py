"""prune, attach, detach: who applies where, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import nn

import foveate
from foveate.engine.session import sessions_on
from foveate.errors import ConfigurationError, SessionError, UnsupportedModelError
from foveate.methods import Random
from tests.reference import Drop, generate
from tests.tiny import Tiny

ROW = [3, (4, 4), 5]


def hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_always_called) for m in model.modules()
    )


def alive(trace: foveate.Trace) -> list[int]:
    return trace.last.alive_per_layer()


def test_nothing_stays_behind(tiny: Tiny) -> None:
    before, inputs = hooks(tiny.model), tiny.batch([ROW])
    stock = generate(tiny.model, inputs, 3)[1]
    with foveate.prune(tiny.model, Drop((0,))):
        assert hooks(tiny.model) > before
        generate(tiny.model, inputs, 3)
    assert hooks(tiny.model) == before
    assert torch.equal(generate(tiny.model, inputs, 3)[1], stock)


class BoomError(Exception):
    pass


def test_an_exception_inside_generate_leaves_nothing(tiny: Tiny) -> None:
    before, inputs = hooks(tiny.model), tiny.batch([ROW])

    def boom(*_: Any) -> None:
        raise BoomError

    layer = tiny.model.model.language_model.layers[3]
    with foveate.prune(tiny.model, Drop((0, 4))) as trace:
        handle = layer.register_forward_pre_hook(boom)
        with pytest.raises(BoomError):
            generate(tiny.model, inputs, 3)
        handle.remove()
        first = generate(tiny.model, inputs, 3)[1]  # the session is still good
    with foveate.prune(tiny.model, Drop((0, 4))):
        assert torch.equal(generate(tiny.model, inputs, 3)[1], first)
    assert hooks(tiny.model) == before
    assert sessions_on(tiny.model.model) == []
    assert alive(trace)[-1] == 4


def test_an_exception_in_a_method_leaves_nothing(tiny: Tiny) -> None:
    class Broken(Drop):
        def select(self, view: Any) -> Any:
            raise BoomError

    before = hooks(tiny.model)
    with pytest.raises(BoomError), foveate.prune(tiny.model, Broken((0,))):
        generate(tiny.model, tiny.batch([ROW]), 3)
    assert hooks(tiny.model) == before


def test_the_innermost_block_wins(tiny: Tiny) -> None:
    inputs = tiny.batch([ROW])
    with foveate.prune(tiny.model, Random(0.5)) as outer:
        with foveate.prune(tiny.model, Random(0.25)) as inner:
            generate(tiny.model, inputs, 2)
        assert (len(outer.prefills), alive(inner)[0]) == (0, 4)
        generate(tiny.model, inputs, 2)
        assert alive(outer)[0] == 8
        with foveate.prune(tiny.model, None) as unpruned:
            generate(tiny.model, inputs, 2)
        assert alive(unpruned)[0] == 16


def test_repeated_use(tiny: Tiny) -> None:
    inputs = tiny.batch([ROW])
    results = []
    for _ in range(3):
        with foveate.prune(tiny.model, Random(0.25)) as trace:
            results.append(generate(tiny.model, inputs, 2)[1])
            generate(tiny.model, inputs, 2)
        assert len(trace.prefills) == 2
    assert all(torch.equal(r, results[0]) for r in results)


def test_threads_with_different_methods_do_not_mix(tiny: Tiny) -> None:
    keeps = (1 / 2, 2 / 3, 5 / 6)  # a quarter, a half and three quarters after layer 2 of 6
    batches = [tiny.batch([[3 + i, (4, 4), 5]]) for i in range(3)]
    expected = []
    for keep, batch in zip(keeps, batches, strict=True):
        with foveate.prune(tiny.model, Random(keep, layer=2)):
            expected.append(generate(tiny.model, batch, 6)[1])
    found: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    counts: dict[int, set[int]] = {}
    barrier = Barrier(3)

    def work(number: int) -> None:
        with foveate.prune(tiny.model, Random(keeps[number], layer=2)) as trace:
            barrier.wait()
            for _ in range(5):
                found[number].append(generate(tiny.model, batches[number], 6)[1])
            counts[number] = {prefill.alive_per_layer()[-1] for prefill in trace.prefills}

    threads = [Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {0: {4}, 1: {8}, 2: {12}}
    for number, logits in enumerate(expected):
        assert all(torch.equal(f, logits) for f in found[number])


def in_thread(run: Callable[[], Any]) -> Any:
    """The result of `run` in a thread of its own, or the exception."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(run())
        except BaseException as error:
            found.append(error)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_is_pruned_only_if_asked_for(tiny: Tiny) -> None:
    inputs = tiny.batch([ROW])
    _, stock = generate(tiny.model, inputs, 2)
    with foveate.prune(tiny.model, Random(0.25)) as trace:
        assert torch.equal(in_thread(lambda: generate(tiny.model, inputs, 2))[1], stock)
        assert not trace.prefills
        context = copy_context()
        in_thread(lambda: context.run(generate, tiny.model, inputs, 2))
        assert alive(trace)[0] == 4
    with foveate.prune(tiny.model, Random(0.5), every_thread=True) as trace:
        in_thread(lambda: generate(tiny.model, inputs, 2))
        assert alive(trace)[0] == 8
        with foveate.prune(tiny.model, Random(0.25), every_thread=True):
            assert isinstance(in_thread(lambda: generate(tiny.model, inputs, 2)), SessionError)


def test_a_context_that_outlives_its_block_is_stock(tiny: Tiny) -> None:
    inputs = tiny.batch([ROW])
    with foveate.prune(tiny.model, Random(0.25)) as trace:
        context = copy_context()
    with foveate.prune(tiny.model, None):  # keeps hooks installed
        _, logits = in_thread(lambda: context.run(generate, tiny.model, inputs, 2))
    assert torch.equal(logits, generate(tiny.model, inputs, 2)[1])
    assert not trace.prefills


def test_attach_serves_every_thread(tiny: Tiny) -> None:
    inputs, before = tiny.batch([ROW]), hooks(tiny.model)
    attached = foveate.attach(tiny.model, Random(0.25))
    try:

        def work() -> foveate.Trace:
            generate(tiny.model, inputs, 2)
            return attached.trace

        assert alive(in_thread(work))[0] == 4
        assert not attached.trace.prefills  # that was another thread's
        generate(tiny.model, inputs, 2)
        generate(tiny.model, inputs, 2)
        assert len(attached.trace.prefills) == 1  # a server remembers the last prefill only
        with pytest.raises(SessionError, match="detach"):
            foveate.attach(tiny.model, Random(0.5))
        with foveate.prune(tiny.model, None) as unpruned:
            generate(tiny.model, inputs, 2)
        assert alive(unpruned)[0] == 16
    finally:
        foveate.detach(tiny.model)
    assert hooks(tiny.model) == before
    with pytest.raises(SessionError):
        foveate.detach(tiny.model)


def test_concurrent_requests_have_their_own_traces(tiny: Tiny) -> None:
    """Each request sees the image that it brought."""
    sizes, wrong = [(2, 2), (2, 4), (4, 4), (4, 6)], []
    attached = foveate.attach(tiny.model, Random(0.5))

    def work(number: int) -> None:
        batch = tiny.batch([[3, sizes[number], 5]])
        count = int((batch["input_ids"] == 90).sum())
        for _ in range(8):
            generate(tiny.model, batch, 2)
            if attached.trace.last.visual_tokens != count:
                wrong.append(number)

    try:
        threads = [Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        foveate.detach(tiny.model)
    assert not wrong


def test_the_base_model_and_the_headed_one_share_a_session(tiny: Tiny) -> None:
    with foveate.prune(tiny.model.model, Random(0.25)) as trace:
        generate(tiny.model, tiny.batch([ROW]), 2)
    assert alive(trace)[0] == 4


def test_unknown_family() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    with pytest.raises(UnsupportedModelError, match="no vision tower was found"), foveate.prune(model, Random()):
        pass
    with pytest.raises(UnsupportedModelError), foveate.prune(nn.Linear(2, 2), Random()):
        pass


def test_a_model_without_the_expected_parts(tiny: Tiny) -> None:
    import copy

    broken = copy.deepcopy(tiny.model)
    del broken.model.language_model.layers
    with pytest.raises(UnsupportedModelError, match="no decoder was found"), foveate.prune(broken, Random()):
        pass


def test_compiled_models_are_refused(tiny: Tiny) -> None:
    import copy

    compiled = copy.deepcopy(tiny.model)
    compiled.compile()
    with pytest.raises(UnsupportedModelError, match="before torch.compile"), foveate.prune(compiled, Random()):
        pass
    with pytest.raises(UnsupportedModelError), foveate.prune(torch.compile(tiny.model), Random()):  # type: ignore[arg-type]
        pass


def test_methods_are_checked_before_anything_runs(tiny: Tiny) -> None:
    for method in (Drop((99,)), Drop((3, 1)), Drop((2, 2)), "vitcopp", Random):
        with pytest.raises((ConfigurationError, foveate.errors.FoveateError)), foveate.prune(tiny.model, method):  # type: ignore[arg-type]
            pass
