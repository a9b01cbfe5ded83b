"""What the growth suite measures: five series of points, the cost of each, and the reference side's memory."""

from dataclasses import asdict, dataclass, replace

RANK = 16
MICRO_BATCH = 1024  # tokens of a micro-batch: weitiao's own choice on a CPU
IMPLEMENTATIONS = {"weitiao": "auto", "plain": "reference"}  # side -> train.implementation
SUSTAINED = {"weitiao": 0.65, "plain": 0.45}  # share of a large matrix product's speed that a whole step reaches
STARTUP = 6.0  # seconds per point besides its steps


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
        """Number of weights in all layers' matrices."""
        return self.layers * sum(a * b for a, b in self.products)


@dataclass(frozen=True)
class Point:
    """One model and one kind of rows."""

    shape: Shape
    vocabulary: int
    length: int
    """Tokens per row."""
    batch: int
    """Tokens per optimizer step."""
    at_once: int = MICRO_BATCH
    """Tokens per micro-batch, at least one row."""
    share: int = 25
    """Per cent of a row's tokens that carry loss: its last ones."""

    @property
    def name(self) -> str:
        facts = f"{self.shape.name}, vocabulary of {self.vocabulary}, rows of {self.length}, {self.batch} per step"
        return f"{facts} ({self.at_once} per micro-batch), {self.share} % supervised"

    @property
    def weights(self) -> int:
        return self.shape.weights + self.vocabulary * self.shape.hidden

    def flops(self, tokens: int) -> float:
        """Forward and backward of LoRA on frozen weights: no gradient of a frozen matrix."""
        shape = self.shape
        body = 4 * shape.weights + 6 * RANK * shape.layers * sum(a + b for a, b in shape.products)
        attention = 3.5 * 4 * shape.hidden * shape.layers * self.length / 2  # causal: on average half of the row
        head = 4 * self.vocabulary * shape.hidden * self.share / 100
        return tokens * (body + attention + head)

    def seconds(self, steps: int, gflops: float, sides: list[str]) -> float:
        """Estimated time of both sides together; the warm-up is one micro-batch."""
        tokens = steps * self.batch + min(self.batch, max(self.at_once, self.length))
        return STARTUP + sum(self.flops(tokens) / (gflops * 1e9 * SUSTAINED[side]) for side in sides)

    def reference_mb(self) -> float:
        """Estimated memory of the reference side: weights, LoRA with AdamW's moments, autograd's saved tensors of each
        layer and of one more during the backward pass, three copies of the logits."""
        shape, tokens = self.shape, min(self.batch, max(self.at_once, self.length))
        trained = 4 * RANK * shape.layers * sum(a + b for a, b in shape.products)
        saved = (shape.layers + 1) * (10 * shape.hidden + 5 * shape.intermediate)
        logits = 3 * self.vocabulary * self.share / 100
        return 4 * (self.weights + trained + tokens * (saved + logits)) / 2**20


@dataclass(frozen=True)
class Series:
    """One quantity grows, the others stay constant."""

    name: str
    points: list[tuple[str, float, Point]]
    """Label, position on the axis, what is measured."""

    def as_json(self) -> dict:
        points = [{"label": label, "x": x, "case": point.name} for label, x, point in self.points]
        return {"places": points}


def thousands(number: int, k: int = 1024) -> str:
    """128, 1k, 8k."""
    return str(number) if number < k else f"{round(number / k)}k"


def millions(number: int) -> str:
    """7.1M, 134M."""
    return f"{number / 1e6:.2g}M" if number < 1e8 else f"{number / 1e6:.0f}M"


def all_series(short: bool, layers: int) -> list[Series]:
    """The five series; `short`: two points each of a tiny model."""
    if short:
        usual = Shape("tiny", 64, 2, 4, 2, 128)
        shapes = [usual, Shape("less tiny", 128, 2, 4, 2, 256)]
        base, rows = Point(usual, 512, 32, 64, 64), Point(usual, 512, 32, 64, 64)
        lengths, vocabularies, batches, shares = [32, 64], [512, 1024], [64, 128], [25, 50]
    else:
        usual = Shape(f"{layers} of SmolLM2-135M's 30 layers", 576, layers, 9, 3, 1536)
        shapes = [
            Shape("tiny", 128, 4, 4, 2, 384),
            usual,
            Shape("SmolLM2-135M", 576, 30, 9, 3, 1536),
            Shape("24 of SmolLM2-360M's 32 layers", 960, 24, 15, 5, 2560),
        ]
        base, rows = Point(usual, 49152, 256, 1024), Point(usual, 49152, 256, 8192)
        lengths, vocabularies = [128, 256, 512, 1024, 2048, 4096, 8192], [32000, 49152, 128256, 262144]
        batches, shares = [256, 512, 1024, 2048, 4096, 8192], [5, 10, 25, 50, 100]
    sized = [replace(base, shape=shape) for shape in shapes]
    by_batch = [replace(base, batch=n, at_once=n) for n in batches]
    return [
        Series("length", [(thousands(n), n, replace(rows, length=n)) for n in lengths]),
        Series(
            "vocabulary",
            [(thousands(n, 1000), n, replace(base, vocabulary=n)) for n in vocabularies],
        ),
        Series("size", [(millions(p.weights), p.weights, p) for p in sized]),
        Series("batch", [(thousands(p.batch), p.batch, p) for p in by_batch]),
        Series("share", [(str(n), n, replace(base, share=n)) for n in shares]),
    ]


def described(series: list[Series]) -> dict:
    """The series and their points, for the results file."""
    points = {point.name: point for one in series for _, _, point in one.points}
    return {
        "series": {one.name: one.as_json() for one in series},
        "points": {name: {**asdict(point), "weights": point.weights} for name, point in points.items()},
    }
