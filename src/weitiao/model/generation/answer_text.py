"""Token ids to text, piece by piece as they are generated, with stop sequences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

INCOMPLETE = "\ufffd"
"""What a decoder writes for bytes that are no whole character."""
MAX_HELD_BACK = 8  # tokens: a character has at most four bytes, so more are bytes that never become one


@dataclass
class AnswerText:
    """The text of an answer that is being generated.

    Held back are the last tokens, while they are part of a character, and the end of the text, while it may be the
    beginning of a stop sequence.
    """

    decode: Callable[[Sequence[int]], str]
    stop: Sequence[str] = ()
    text: str = ""
    """What can be shown; cut before a stop sequence."""
    is_stopped: bool = False
    """A stop sequence has come."""
    _ids: list[int] = field(default_factory=list)
    _context: int = 0  # tokens before this one are not decoded again
    _decoded: int = 0  # tokens before this one are in the text
    _held_back: str = ""

    def add(self, token: int) -> None:
        """The next token of the answer."""
        self._ids.append(token)
        self._decode_on(finish=len(self._ids) - self._decoded > MAX_HELD_BACK)
        self._search()

    def finish(self) -> None:
        """Nothing follows: show what was held back."""
        if not self.is_stopped:
            self._decode_on(finish=True)
            self._search()
        if not self.is_stopped:
            self.text, self._held_back = self.text + self._held_back, ""

    def _decode_on(self, finish: bool) -> None:
        # decoded together with the tokens before them: some tokenizers write a space before a word, but not at the start
        before = self.decode(self._ids[self._context : self._decoded])
        after = self.decode(self._ids[self._context :])
        if len(after) <= len(before) and not finish or (after.endswith(INCOMPLETE) and not finish):
            return
        self._held_back += after[len(before) :]
        self._context, self._decoded = self._decoded, len(self._ids)

    def _search(self) -> None:
        matches = [(i, x) for x in self.stop if x and (i := self._held_back.find(x)) >= 0]
        if matches:
            self.text, self._held_back, self.is_stopped = self.text + self._held_back[: min(matches)[0]], "", True
            return
        keep = max((_overlap(self._held_back, x) for x in self.stop), default=0)
        length = len(self._held_back) - keep
        self.text, self._held_back = self.text + self._held_back[:length], self._held_back[length:]


def _overlap(text: str, stop: str) -> int:
    """How many of the text's last characters are the beginning of a stop sequence."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
