"""The engine: continuous batching over the slots of a model that caches keys and values.

    waiting ->  slots            one step                              after it
    r7 r8 r9    0  r1  ........x    r1 r2 r4: their next token         r2 has ended: its slot is free, r7 takes it
                1  r2  ...x         r5: the next part of its prompt
                2  r4  .....x
                3  r5  ::::

Yu et al. 2022, "Orca", OSDI, sec. 4.2: rows join and leave between steps. Agrawal et al. 2023, "Sarathi", arXiv 2308.16369,
sec. 4: prompts run in parts, next to the rows that are being answered, so a long one does not stop the others.
"""

import secrets
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from weitiao.core.engine import EngineLoad, FinishReason, GeneratedToken, Generation, Request
from weitiao.core.errors import DataError, ModelError
from weitiao.core.processor import Processor
from weitiao.model.generation.answer_text import AnswerText
from weitiao.model.generation.constraint import GrammarCompiler
from weitiao.model.generation.forward import CachedForward, RowTokens
from weitiao.model.generation.sampling import SamplingState, sample
from weitiao.model.generation.slots import SharedPrefix, Slot, SlotTable


@dataclass
class Row:
    """A request on its way."""

    generation: Generation
    ids: list[int]
    """The prompt, virtual tokens included, and the answer so far."""
    prompt_length: int
    limit: int
    """The most tokens of the answer."""
    sampling: SamplingState
    text: AnswerText
    slot: Slot | None = None
    is_cancelled: bool = False

    @property
    def adapter(self) -> str:
        return self.generation.request.adapter


@dataclass
class SlotEngine:
    """An Engine (core/engine.py) over a CachedForward."""

    forward: CachedForward
    processor: Processor
    length_limit: int | None = None
    """The most tokens of a prompt with its answer; None: any number."""
    virtual_tokens: Callable[[], Sequence[int]] = tuple
    """Ids that a method puts before every prompt."""
    check_adapter: Callable[[str], None] = lambda name: None
    """Raises ModelError if there is no such adapter."""
    adapter_version: Callable[[str], int] = lambda name: 0
    """Changes when an adapter is replaced by another one of its name, whose prefixes are others."""
    max_rows: int = 32
    prefill_tokens: int = 256
    """Tokens of prompts per step, at most: more are faster, but running answers wait for longer."""
    compile_grammar: GrammarCompiler | None = None
    waiting: deque[Row] = field(default_factory=deque)
    running: list[Row] = field(default_factory=list)
    _table: SlotTable = field(init=False)
    _by_id: dict[int, Row] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._table = SlotTable(self.max_rows)

    @property
    def max_length(self) -> int:
        return sys.maxsize if self.length_limit is None else self.length_limit - len(self.virtual_tokens())

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(len(self.running), len(self.waiting), self.max_rows, self._table.cached_tokens)

    def submit(self, request: Request) -> Generation:
        """Queue a request.

        Raises:
            DataError: the prompt is empty or leaves no room for an answer, there is no such adapter, or no grammars.
        """
        length = len(request.prompt_ids)
        if not length:
            raise DataError("a prompt has no tokens")
        if length >= self.max_length:
            raise DataError(
                "a prompt has {n:,} tokens, but the base takes {limit:,} with its answer: shorten the prompt",
                n=length,
                limit=self.max_length,
            )
        try:
            self.check_adapter(request.adapter)
        except ModelError as error:
            raise DataError("{reason}", reason=error.message) from None
        row = self._row(request)
        with self._lock:
            self.waiting.append(row)
            self._by_id[id(row.generation)] = row
        return row.generation

    def _row(self, request: Request) -> Row:
        params, generation = request.sampling, Generation(request)
        constraint = None
        if params.grammar is not None:
            if self.compile_grammar is None:
                raise DataError("this engine has no grammars. Install them with: pip install 'weitiao[json]'")
            constraint = self.compile_grammar(params.grammar, getattr(self.processor, "tokenizer", self.processor))
        seed = secrets.randbits(63) if params.seed is None else params.seed
        prompt = list(request.prompt_ids)
        return Row(
            generation,
            [*self.virtual_tokens(), *prompt],
            len(self.virtual_tokens()) + len(prompt),
            max(1, min(params.max_new_tokens, self.max_length - len(prompt))),
            SamplingState(params, seed, request.index, prompt, constraint),
            AnswerText(self.processor.decode, params.stop),
        )

    def cancel(self, generation: Generation) -> None:
        """End a generation before its next token; its slot is free at the next step."""
        with self._lock:
            row = self._by_id.get(id(generation))
            if row is not None:
                row.is_cancelled = True

    def clear(self) -> None:
        """Forget all cached prefixes, as after a change of the weights, and free their memory; nothing may be running."""
        assert not self.running, "rows are running"
        self.forward.clear()
        self._table = SlotTable(self.max_rows)

    @torch.inference_mode()
    def step(self) -> list[Generation]:
        """Run the model once; the generations that got tokens or ended. []: there was nothing to do.

        As long as there are only prompts to read, it goes on to the first token.
        """
        changed = self._drop_cancelled()
        while not changed:
            self._admit()
            work = self._plan()
            if not work:
                return []
            changed = self._run(work)
        return changed

    def _run(self, work: Sequence[tuple[Row, int]]) -> list[Generation]:
        """One forward pass; the generations that got tokens or ended."""
        tokens = [
            RowTokens(row.slot.number, row.slot.cached, row.ids[row.slot.cached : stop], row.adapter, stop == len(row.ids))
            for row, stop in work
            if row.slot is not None
        ]
        logits = self.forward.run(tokens)
        ready = []
        for row, stop in work:
            assert row.slot is not None
            row.slot.cached = stop
            if stop == len(row.ids):
                ready.append(row)
        for row, token in zip(ready, sample(logits, [row.sampling for row in ready]) if ready else ()):
            self._accept(row, token)
        return [row.generation for row in ready]

    # -- who runs -----------------------------------------------------------------------------------------------------

    def _drop_cancelled(self) -> list[Generation]:
        with self._lock:
            cancelled = [row for row in (*self.running, *self.waiting) if row.is_cancelled]
            if cancelled:
                self.waiting = deque(row for row in self.waiting if not row.is_cancelled)
        for row in cancelled:
            self._end(row, "cancelled")
        return [row.generation for row in cancelled]

    def _admit(self) -> None:
        """Give waiting rows slots, in their order. One that shares a prefix with a prompt that is only being read waits."""
        blocked: list[Row] = []
        while self.waiting and self._table.num_free:
            row = self.waiting[0]
            prompt = np.asarray(row.ids, np.int64)
            shared = self._table.shared(prompt, self._prefix_owner(row)) if self.forward.keeps_prefixes else None
            if shared is not None and shared.length < shared.expected:
                with self._lock:
                    blocked.append(self.waiting.popleft())
                continue
            may_grow = self._has_memory(len(self._table.slots) + 1, row)
            if not may_grow and not (self._table.has_free and self._has_memory(len(self._table.slots), row)):
                if self.running:
                    break  # until rows end
                self.clear()  # the cached prefixes make room
                shared, may_grow = None, True
            with self._lock:
                self.waiting.popleft()
            self._start(row, prompt, shared, may_grow)
        with self._lock:
            self.waiting.extendleft(reversed(blocked))

    def _has_memory(self, num_slots: int, row: Row) -> bool:
        return self.forward.fits(min(num_slots, self.max_rows), row.prompt_length + row.limit)

    def _start(self, row: Row, prompt: np.ndarray, shared: SharedPrefix | None, may_grow: bool) -> None:
        in_place = shared is not None and shared.slot.is_free and 2 * shared.length >= len(shared.slot.ids)
        slot = self._table.take(shared.slot if shared is not None and in_place else None, may_grow)
        cached = 0
        if shared is not None:
            cached = shared.length
            if slot is not shared.slot:
                self.forward.copy_prefix(shared.slot.number, slot.number, cached)
            self._table.touch(shared.slot)
        slot.ids, slot.cached, slot.adapter = prompt, cached, self._prefix_owner(row)
        row.slot, row.generation.cached_tokens = slot, max(0, cached - row.prompt_length + len(row.sampling.prompt_ids))
        self.running.append(row)

    def _prefix_owner(self, row: Row) -> str:
        return f"{self.adapter_version(row.adapter)} {row.adapter}"

    def _plan(self) -> list[tuple[Row, int]]:
        """(a row, up to which of its tokens it runs): all that are being answered, then prompts, the oldest first."""
        answering = [row for row in self.running if row.slot is not None and len(row.ids) - row.slot.cached == 1]
        work, left = [(row, len(row.ids)) for row in answering], self.prefill_tokens
        for row in self.running:
            assert row.slot is not None
            missing = len(row.ids) - row.slot.cached
            if missing > 1 and left > 0:
                count = min(missing, left)
                work.append((row, row.slot.cached + count))
                left -= count
        return work

    # -- what comes out -----------------------------------------------------------------------------------------------

    def _accept(self, row: Row, token: GeneratedToken) -> None:
        params, generation, constraint = row.sampling.params, row.generation, row.sampling.constraint
        if constraint is not None and constraint.error:  # while the mask was computed: only stop tokens were left
            self._end(row, "error")
            return
        if token.id in self.processor.stop_ids and not params.ignore_eos:
            self._end(row, "stop")
            return
        row.ids.append(token.id)
        row.sampling.accept(token.id)
        row.text.add(token.id)
        generation.tokens.append(token)
        generation.text = row.text.text
        if constraint is not None and constraint.error:  # while the token was taken in
            self._end(row, "error")
        elif row.text.is_stopped or (constraint is not None and constraint.is_finished):
            self._end(row, "stop")
        elif len(generation.tokens) >= row.limit:
            self._end(row, "length")

    def _end(self, row: Row, reason: FinishReason) -> None:
        row.text.finish()
        if reason == "error" and row.sampling.constraint is not None:
            row.generation.error = row.sampling.constraint.error
        row.generation.text = row.text.text
        with self._lock:
            self._by_id.pop(id(row.generation), None)
        if row.slot is not None:
            self.running.remove(row)
            self._table.free(row.slot, row.ids)
            self.forward.release(row.slot.number)
            row.slot = None
        row.generation.finish_reason = reason
