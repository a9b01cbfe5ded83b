"""The results of the SFT suite: medians, ratios, targets, and whether they were met.

python -m bench.sft.report bench/results/sft.json        prints the table and the markdown block again
"""

import json
import math
import random
import sys
from pathlib import Path
from statistics import median

from bench.shared.machine import machine_words

TARGETS = {  # ours over TRL's: least speed (real tokens/s), greatest memory (peak above what was held before the model)
    "LoRA": {"trl": (7.5, 0.45), "trl_best": (3.5, 0.25)},
    "all weights": {"trl": (4.0, 0.6), "trl_best": (2.0, 0.4)},
}
MAX_START_RATIO = 0.5  # ours over TRL's: seconds from the command to the end of the first optimizer step
MAX_GAP = 0.02  # validation loss in nats per token, whatever TRL's own seeds do
GAP_NOISE = 0.002  # a gap this small counts as zero, even if TRL's two seeds happen to be closer
ENOUGH_STEPS = 6  # fewer do not measure speed
MAX_BACKGROUND = 0.05  # share of the processor that other programs use during a run
ROWS = {
    "docstrings": "docstrings of the standard library of Python {python}",
    "chatterbot": "the English dialogues of chatterbot-corpus 1.3.3, message and reply",
    "equal": "functions and docstrings of the standard library of Python {python}, texts of 256 tokens, all supervised",
}
NAMES = {"trl": "TRL, its defaults", "trl_best": "TRL, its fastest settings", "weitiao": "weitiao"}


def memory_used(run: dict) -> float:
    """Peak above what was held before the model; the larger of the own and the outside measurement."""
    memory = run["memory"]
    return max(memory["peak_mb"], memory.get("peak_mb_from_outside", 0.0)) - memory["before_model_mb"]


FIGURES = {  # what is compared between two runs
    "speed": lambda run: run["tokens_per_second"],
    "memory": memory_used,
    "start": lambda run: run.get("first_step_seconds", math.nan),  # missing in older results
}


def trained_all(pairs: list[dict], rows: dict) -> bool:
    """Whether every run trained on each row exactly once: its counts add up to those of the whole file."""
    runs = [(run, "weitiao" if who == "weitiao" else "trl") for pair in pairs for who, run in pair.items()]
    return all(run[count] == rows[f"{side}_{count}"] for run, side in runs for count in ("tokens", "supervised"))


def summarise_speed(pairs: list[dict], rows: dict) -> dict:
    """Medians of each system, and the median of the ratios within pairs."""
    systems = {}
    for who in (name for name in NAMES if all(name in pair for pair in pairs)):
        runs = [pair[who] for pair in pairs]
        systems[who] = {
            "tokens_per_second": median(map(FIGURES["speed"], runs)),
            "memory_mb": median(map(FIGURES["memory"], runs)),
            "first_step_seconds": median(map(FIGURES["start"], runs)),
            "whole_process_seconds": median(run["wall_seconds"] for run in runs),
            "tokens": runs[0]["tokens"],
            "supervised": runs[0]["supervised"],
        }
        if who != "weitiao":
            for name, figure in FIGURES.items():
                ratios = [figure(pair["weitiao"]) / figure(pair[who]) for pair in pairs]
                systems[who] |= {f"{name}_ratios": ratios, f"{name}_ratio": median(ratios)}
    runs = [run for pair in pairs for run in pair.values()]
    return {
        "systems": systems,
        "pairs": len(pairs),
        "same_rows": rows["rows"] == rows["rows_with_equal_ids"] and trained_all(pairs, rows),
        "share_of_others": max(run["share_of_others"] for run in runs),
    }


def paired_interval(ours: dict, theirs: dict, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of ours - theirs in token-mean loss: a paired bootstrap over rows."""
    rows, rng, differences = range(len(ours["sums"])), random.Random(0), []
    for _ in range(draws):
        drawn = rng.choices(rows, k=len(rows))
        tokens = sum(ours["counts"][row] for row in drawn)
        differences.append(sum(ours["sums"][row] - theirs["sums"][row] for row in drawn) / tokens)
    differences.sort()
    return differences[int(0.025 * draws)], differences[int(0.975 * draws)]


def summarise_quality(quality: dict) -> dict:
    judged = quality["judged"]
    losses = {who: verdict["loss"] for who, verdict in judged.items()}
    gap, seed_gap = losses["weitiao"] - losses["trl_seed0"], abs(losses["trl_seed0"] - losses["trl_seed1"])
    allowed = min(MAX_GAP, max(seed_gap, GAP_NOISE))
    return {
        "losses": losses,
        "learnt": losses["base"] - losses["trl_seed0"],
        "gap": gap,
        "gap_interval": paired_interval(judged["weitiao"], judged["trl_seed0"]),
        "seed_gap": seed_gap,
        "allowed": allowed,
        "same_rows": len({tuple(verdict["counts"]) for verdict in judged.values()}) == 1,
        "same_size": judged["weitiao"]["adapter_weights"] == judged["trl_seed0"]["adapter_weights"],
        "own_validation_loss": quality["runs"]["weitiao"]["own_validation_loss"],
        "quality_reached": abs(gap) <= allowed,
    }


def summarise(results: dict) -> dict:
    rows = results.get("same_rows")
    return {
        "speed": {name: summarise_speed(pairs, rows) for name, pairs in results["speed"].items() if pairs},
        "quality": {precision: summarise_quality(part) for precision, part in results["quality"].items()},
    }


def passed(reached: bool) -> str:
    return "pass" if reached else "FAIL"


def speed_lines(summary: dict) -> list[list[str]]:
    """Header and rows, one row per system."""
    lines = [["system", "real tokens/s", "weitiao speed", "memory MB", "weitiao memory", "whole process s", "supervised"]]
    timed = not math.isnan(summary["systems"]["weitiao"]["first_step_seconds"])
    lines[0] += ["first step after s", "weitiao first step"] * timed
    for who, system in summary["systems"].items():
        ratios = system.get("speed_ratios", [])
        spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
        lines.append(
            [
                NAMES[who],
                f"{system['tokens_per_second']:.1f}",
                f"{system['speed_ratio']:.2f}x{spread}" if ratios else "",
                f"{system['memory_mb']:.0f}",
                f"{system['memory_ratio']:.2f}x" if ratios else "",
                f"{system['whole_process_seconds']:.0f}",
                f"{system['supervised']} of {system['tokens']}",
                *[f"{system['first_step_seconds']:.1f}", f"{system['start_ratio']:.2f}x" if ratios else ""] * timed,
            ]
        )
    return lines


def quality_lines(summary: dict) -> list[list[str]]:
    names = {"base": "base model, untrained", "trl_seed0": "TRL, seed 0", "trl_seed1": "TRL, seed 1"}
    return [["adapter", "validation loss"]] + [
        [names.get(who, who), f"{loss:.4f}"] for who, loss in summary["losses"].items()
    ]


def rows_sentence(rows: dict) -> str:
    """How the two sides' tokens of the same rows differ."""
    only = {"TRL": rows["only_trl_learns"], "weitiao": rows["only_weitiao_learns"]}
    differences = [
        f"only {who} trains on {token!r} ({count}x)" for who, tokens in only.items() for token, count in tokens.items()
    ]
    return (
        f"note: {rows['rows_with_equal_ids']} of {rows['rows']} rows have equal token ids on both sides. TRL counts "
        f"{rows['trl_tokens']} tokens, weitiao {rows['weitiao_tokens']} (weitiao does not run the last token of a row, "
        "which predicts nothing; its tokens/s are not corrected for that). "
        f"Supervised: TRL {rows['trl_supervised']}, weitiao {rows['weitiao_supervised']}; "
        f"{'; '.join(differences) or 'the same on both sides'}"
    )


def verdicts(results: dict) -> list[str]:
    """One sentence per target, and notes."""
    lines = [rows_sentence(results["same_rows"])]
    if results["setup"]["steps"] < ENOUGH_STEPS:
        lines.append("note: so few steps show that everything works, not how fast it is")
    for precision, speed in results["summary"]["speed"].items():
        for who, (min_speed, max_memory) in TARGETS["LoRA" if results["setup"]["rank"] else "all weights"].items():
            if who not in speed["systems"]:
                continue
            fast, lean, start = (speed["systems"][who][f"{name}_ratio"] for name in FIGURES)
            speed_line = f"{precision} speed {fast:.2f}x of {NAMES[who]} (target: at least {min_speed}x)"
            memory_line = f"{precision} memory {lean:.2f}x of {NAMES[who]} (target: at most {max_memory}x)"
            lines.append(f"{passed(fast >= min_speed)}: {speed_line}")
            lines.append(f"{passed(lean <= max_memory)}: {memory_line}")
            if not math.isnan(start):
                start_line = f"{precision} first step after {start:.2f}x the time of {NAMES[who]}"
                lines.append(f"{passed(start <= MAX_START_RATIO)}: {start_line} (target: at most {MAX_START_RATIO}x)")
        if not speed["same_rows"]:
            lines.append(f"FAIL: {precision} the systems did not train on the same tokens of the same rows")
        if speed["share_of_others"] > MAX_BACKGROUND:
            lines.append(
                f"note: {precision} other programs used up to {speed['share_of_others']:.0%} of the machine during a run, "
                "so its speeds cannot be trusted: measure again on a quiet machine"
            )
    for precision, quality in results["summary"]["quality"].items():
        low, high = quality["gap_interval"]
        lines.append(
            f"{passed(quality['quality_reached'])}: {precision} quality gap {quality['gap']:+.4f} nats per token "
            f"(95 % over rows: {low:+.4f} to {high:+.4f}), TRL's own seed gap {quality['seed_gap']:.4f}; "
            f"allowed: {quality['allowed']:.4f}; TRL learned: {quality['learnt']:.4f}"
        )
        lines.append(
            f"note: {precision} weitiao itself measures a validation loss of {quality['own_validation_loss']:.4f}, "
            f"the judge {quality['losses']['weitiao']:.4f} (the judge computes in fp32)"
        )
        if not (quality["same_rows"] and quality["same_size"]):
            lines.append(f"FAIL: {precision} the adapters differ in size, or were not scored on the same tokens")
    return lines


def table(results: dict) -> str:
    """Plain text for the terminal."""
    parts = []
    for kind, lines_of in (("speed", speed_lines), ("quality", quality_lines)):
        for precision, summary in results["summary"][kind].items():
            lines = lines_of(summary)
            widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
            text = ["   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
            parts.append("\n".join([f"{precision}, {kind}", *(f"  {line.rstrip()}" for line in text)]))
    return "\n\n".join([*parts, "\n".join(verdicts(results))])


def conditions(results: dict) -> str:
    """One paragraph: model, rows, machine, versions."""
    machine, setup = results["machine"], results["setup"]
    first = next(iter(results["speed"].values()))[0]["trl"]
    settings, versions = first["settings"], first["versions"]
    lora = f"LoRA rank {setup['rank']}, alpha {setup['alpha']}, all linear layers"
    trained = lora if setup["rank"] else "all weights"
    rows = ROWS[setup.get("rows", "docstrings")].format(**results["speed_rows"])
    if setup.get("plain_template"):
        rows += "; the model has no chat template, so both sides have the same plain one"
    return (
        f"{setup['model']}, {trained}, "
        f"{setup['batch_size']} rows per step, {setup['steps']} steps (the first is not timed), learning rate "
        f"{settings['learning_rate']}, {settings['lr_scheduler_type']} schedule, AdamW, clipping at "
        f"{settings['max_grad_norm']}. Rows: {rows}. {machine_words(machine)}. "
        f"torch {versions['torch']}, transformers {versions['transformers']}, TRL {versions['trl']}, "
        f"PEFT {versions['peft']}. Real tokens are those of rows, without padding; memory is the peak above what the "
        "process held before it loaded the model."
    )


def markdown(results: dict, picture: str) -> str:
    """A block to paste into bench/RESULTS.md."""
    parts = ["### Supervised fine-tuning next to TRL", conditions(results)]
    for kind, lines_of in (("speed", speed_lines), ("quality", quality_lines)):
        for precision, summary in results["summary"][kind].items():
            head, *body = lines_of(summary)
            rows = [head, ["---"] * len(head), *body]
            parts.append(f"**{precision}, {kind}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows))
    parts.append("\n".join(f"- {sentence}" for sentence in verdicts(results)))
    parts.append(f"![loss, speed and memory](results/{picture})")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    path = Path(sys.argv[1])
    results = json.loads(path.read_text(encoding="utf-8"))
    results["summary"] = summarise(results)
    print(table(results), markdown(results, path.with_suffix(".svg").name), sep="\n\n")


if __name__ == "__main__":
    main()
