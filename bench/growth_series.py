"""What bench/growth.py measures: five series of points, what each costs, and what the plain engine would hold."""

from dataclasses import asdict, dataclass, replace

RANK = 16
AT_ONCE = 1024  # tokens of a micro-batch: what weitiao itself chooses on a CPU
ENGINES = {"weitiao": "auto", "plain": "plain"}  # side -> train.implementation
SUSTAINED = {"weitiao": 0.65, "plain": 0.45}  # share of a large matrix product's speed that a whole step reaches
STARTING = 6.0  # seconds a point takes beside its steps


@dataclass(frozen=True)
class Shape:
    """A Llama without its vocabulary."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int

    @property
    def products(self) -> list[tuple[int, int]]:
        """(in, out) of each matrix of a layer."""
        wide, narrow, middle = self.hidden, self.hidden // self.heads * self.kv_heads, self.intermediate
        return [(wide, wide), (wide, narrow), (wide, narrow), (wide, wide), (wide, middle), (wide, middle), (middle, wide)]

    @property
    def weights(self) -> int:
        """Of all layers' matrices."""
        return self.layers * sum(a * b for a, b in self.products)


@dataclass(frozen=True)
class Point:
    """One model, and one kind of rows."""

    shape: Shape
    lm_head: int
    length: int
    """Tokens of every row."""
    batch: int
    """Tokens of an optimizer step."""
    at_once: int = AT_ONCE
    """Tokens of a micro-batch, one row at least."""
    share: int = 25
    """Per cent of a row's tokens that are learnt: its last ones."""

    @property
    def name(self) -> str:
        facts = f"{self.shape.name}, {self.lm_head} words, rows of {self.length}, {self.batch} a step"
        return f"{facts} ({self.at_once} at once), {self.share} % learnt"

    @property
    def weights(self) -> int:
        return self.shape.weights + self.lm_head * self.shape.hidden

    def flops(self, tokens: int) -> float:
        """Forward and backward of LoRA on frozen weights: no gradient of a weight matrix is formed."""
        shape = self.shape
        body = 4 * shape.weights + 6 * RANK * shape.layers * sum(a + b for a, b in shape.products)
        attention = 3.5 * 4 * shape.hidden * shape.layers * self.length / 2  # a token sees half of its row
        head = 4 * self.lm_head * shape.hidden * self.share / 100
        return tokens * (body + attention + head)

    def seconds(self, steps: int, gflops: float, sides: list[str]) -> float:
        """About how long both sides take together; the warm-up is one micro-batch."""
        tokens = steps * self.batch + min(self.batch, max(self.at_once, self.length))
        return STARTING + sum(self.flops(tokens) / (gflops * 1e9 * SUSTAINED[side]) for side in sides)

    def plain_mb(self) -> float:
        """About what the plain engine holds: weights, LoRA with AdamW's memory, what autograd keeps of each layer and one
        layer more while it goes back, three copies of the logits."""
        shape, tokens = self.shape, min(self.batch, max(self.at_once, self.length))
        learnt = 4 * RANK * shape.layers * sum(a + b for a, b in shape.products)
        kept = (shape.layers + 1) * (10 * shape.hidden + 5 * shape.intermediate)
        logits = 3 * self.lm_head * self.share / 100
        return 4 * (self.weights + learnt + tokens * (kept + logits)) / 2**20


@dataclass(frozen=True)
class Series:
    """One quantity grows, the others stay."""

    name: str
    unit: str
    places: list[tuple[str, float, Point]]
    """Label, value on the axis, what is measured there."""

    def as_json(self) -> dict:
        places = [{"label": label, "x": x, "case": point.name} for label, x, point in self.places]
        return {"unit": self.unit, "places": places}


def thousands(number: int, k: int = 1024) -> str:
    """128, 1k, 8k."""
    return str(number) if number < k else f"{round(number / k)}k"


def millions(number: int) -> str:
    """7.1M, 134M."""
    return f"{number / 1e6:.2g}M" if number < 1e8 else f"{number / 1e6:.0f}M"


def all_series(short: bool, layers: int) -> list[Series]:
    """The five series; `short`: two points each of a model that does nearly nothing."""
    if short:
        usual = Shape("tiny", 64, 2, 4, 2, 128)
        shapes = [usual, Shape("less tiny", 128, 2, 4, 2, 256)]
        base, rows = Point(usual, 512, 32, 64, 64), Point(usual, 512, 32, 64, 64)
        lengths, words, batches, shares = [32, 64], [512, 1024], [64, 128], [25, 50]
    else:
        usual = Shape(f"{layers} of SmolLM2-135M's 30 layers", 576, layers, 9, 3, 1536)
        shapes = [
            Shape("tiny", 128, 4, 4, 2, 384),
            usual,
            Shape("SmolLM2-135M", 576, 30, 9, 3, 1536),
            Shape("24 of SmolLM2-360M's 32 layers", 960, 24, 15, 5, 2560),
        ]
        base, rows = Point(usual, 49152, 256, 1024), Point(usual, 49152, 256, 8192)
        lengths, words = [128, 256, 512, 1024, 2048, 4096, 8192], [32000, 49152, 128256, 262144]
        batches, shares = [256, 512, 1024, 2048, 4096, 8192], [5, 10, 25, 50, 100]
    sized = [replace(base, shape=shape) for shape in shapes]
    by_batch = [replace(base, batch=n, at_once=n) for n in batches]
    return [
        Series("length", "tokens of a row", [(thousands(n), n, replace(rows, length=n)) for n in lengths]),
        Series("vocabulary", "words", [(thousands(n, 1000), n, replace(base, vocabulary=n)) for n in words]),
        Series("size", "weights", [(millions(p.weights), p.weights, p) for p in sized]),
        Series("batch", "tokens of a step, all at once", [(thousands(p.batch), p.batch, p) for p in by_batch]),
        Series("share", "% of the tokens learnt", [(str(n), n, replace(base, share=n)) for n in shares]),
    ]


def described(series: list[Series]) -> dict:
    """For the results: the series, and what each of their points is."""
    points = {point.name: point for one in series for _, _, point in one.places}
    return {
        "series": {one.name: one.as_json() for one in series},
        "points": {name: {**asdict(point), "weights": point.weights} for name, point in points.items()},
    }
