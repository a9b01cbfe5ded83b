"""weitiao data inspect of a million short rows, half Chinese, half English: 3 CPU minutes and 1.5 GB. With --full."""

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROWS, CPU_SECONDS, MEGABYTES = 1_000_000, 180, 1500
WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one "
    "you were all her she there would their we him been has when who will no more if out so up said what its about than"
)
HAN = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所"
    "民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四"
)


def write_rows(file: Path, count: int) -> None:
    """Questions of 8 to 26 Chinese characters or 5 to 12 words, answers of twice that; 1 % copies, 1 % with a number."""
    random_, words, last = random.Random(1), WORDS.split(), ("", "")
    with open(file, "w", encoding="utf-8") as out:
        for _ in range(count):
            chance = random_.random()
            if chance > 0.99 and last[0]:
                question, answer = last
            elif random_.random() < 0.5:
                question = "".join(random_.choices(HAN, k=random_.randint(8, 25))) + "？"
                answer = "".join(random_.choices(HAN, k=random_.randint(12, 50))) + "。"
            else:
                question = " ".join(random_.choices(words, k=random_.randint(5, 12))) + "?"
                answer = " ".join(random_.choices(words, k=random_.randint(6, 25))) + "."
            last = question, answer + (" 13812345678" if chance < 0.01 else "")
            out.write(json.dumps({"prompt": last[0], "completion": last[1]}, ensure_ascii=False) + "\n")


@pytest.mark.full
def test_a_million_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_rows(file, ROWS)
    command = [sys.executable, "-m", "weitiao", "data", "inspect", str(file), "--out", str(tmp_path / "page.html")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    megabytes = after.ru_maxrss * 1024 / 1e6
    print(f"{ROWS:,} rows: {seconds:.0f} CPU seconds, {megabytes:.0f} MB")
    assert seconds <= CPU_SECONDS and megabytes <= MEGABYTES
    assert (tmp_path / "page.html").stat().st_size < 1_500_000
