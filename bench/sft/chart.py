"""The chart of the SFT suite as SVG: training loss of both systems, bars for speed and memory.

python -m bench.sft.chart bench/results/sft.json      writes bench/results/sft.svg again
"""

import json
import sys
from html import escape
from pathlib import Path

WIDTH, ROW_HEIGHT, TOP = 900, 290, 40
COLOURS = {
    "weitiao": "#c0392b",
    "trl": "#2c6fbb",
    "trl_seed0": "#2c6fbb",
    "trl_seed1": "#7fb2e5",
    "trl_best": "#7fb2e5",
}
NAMES = {
    "weitiao": "weitiao",
    "trl": "TRL defaults",
    "trl_seed0": "TRL seed 0",
    "trl_seed1": "TRL seed 1",
    "trl_best": "TRL fastest",
}


def text(x: float, y: float, content: str, anchor: str = "start", size: int = 12, colour: str = "#333") -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "#999") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def running_mean(values: list[float], width: int) -> list[float]:
    """The mean of up to `width` values that end at each position."""
    windows = [values[max(0, end - width) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


def loss_panel(runs: dict[str, dict], left: float, top: float, width: float, height: float, title: str) -> list[str]:
    """Thin line: each step (each system has its own batch order). Thick line: the mean of the last ten steps."""
    losses = {who: [step["loss"] for step in run["steps"]] for who, run in runs.items()}
    low, high = min(map(min, losses.values())), max(map(max, losses.values()))
    steps, span = max(map(len, losses.values())), (high - low) or 1.0

    def points(values: list[float]) -> str:
        return " ".join(
            f"{left + width * number / max(1, steps - 1):.1f},{top + height * (high - value) / span:.1f}"
            for number, value in enumerate(values)
        )

    drawn = [text(left, top - 14, title, size=13), line(left, top + height, left + width, top + height)]
    drawn += [line(left, top, left, top + height), text(left - 6, top + 10, f"{high:.2f}", "end")]
    drawn += [text(left - 6, top + height, f"{low:.2f}", "end"), text(left, top + height + 16, "step 1")]
    drawn.append(text(left + width, top + height + 16, f"step {steps}", "end"))
    for number, (who, values) in enumerate(losses.items()):
        for opacity, thickness, curve in ((0.3, 1, values), (1, 2, running_mean(values, 10))):
            style = f'stroke="{COLOURS[who]}" stroke-width="{thickness}" opacity="{opacity}" fill="none"'
            drawn.append(f'<polyline points="{points(curve)}" {style}/>')
        drawn.append(text(left + width - 4, top + 12 + 16 * number, NAMES[who], "end", colour=COLOURS[who]))
    return drawn


def bar_panel(values: dict[str, float], left: float, top: float, width: float, height: float, title: str) -> list[str]:
    drawn = [text(left, top - 14, title, size=13), line(left, top + height, left + width, top + height)]
    highest, slot = max(values.values()), width / len(values)
    for number, (who, value) in enumerate(values.items()):
        tall, middle = (height - 20) * value / highest, left + slot * (number + 0.5)
        corner = f'x="{middle - slot * 0.35:.1f}" y="{top + height - tall:.1f}"'
        drawn.append(f'<rect {corner} width="{slot * 0.7:.1f}" height="{tall:.1f}" fill="{COLOURS[who]}"/>')
        drawn.append(text(middle, top + height - tall - 5, f"{value:.0f}", "middle"))
        drawn.append(text(middle, top + height + 16, NAMES[who], "middle", size=10))
    return drawn


def draw(results: dict) -> str:
    """Three panels per precision."""
    drawn: list[str] = []
    for number, (precision, speed) in enumerate(results["summary"]["speed"].items()):
        top, height = TOP + number * ROW_HEIGHT + 24, ROW_HEIGHT - 80
        quality = results["quality"].get(precision)
        runs = quality["runs"] if quality else results["speed"][precision][0]
        systems = speed["systems"]
        drawn += loss_panel(runs, 60, top, 330, height, f"{precision}: training loss")
        tokens = {who: system["tokens_per_second"] for who, system in systems.items()}
        drawn += bar_panel(tokens, 430, top, 210, height, f"{precision}: real tokens per second")
        memory = {who: system["memory_mb"] for who, system in systems.items()}
        drawn += bar_panel(memory, 680, top, 210, height, f"{precision}: memory, MB")
    tall = TOP + ROW_HEIGHT * len(results["summary"]["speed"])
    head = text(WIDTH / 2, 24, f"Supervised LoRA fine-tuning: {results['setup']['model']}", "middle", 15)
    size = f'width="{WIDTH}" height="{tall}" viewBox="0 0 {WIDTH} {tall}"'
    paper = f'<rect width="{WIDTH}" height="{tall}" fill="white"/>'
    body = "\n".join([paper, head, *drawn])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n{body}\n</svg>\n'


def main() -> None:
    path = Path(sys.argv[1])
    path.with_suffix(".svg").write_text(draw(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
