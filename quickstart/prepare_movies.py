"""Which film next? Real people's histories: MovieLens 100K. Run: python quickstart/prepare_movies.py

943 people rated 1,682 films from September 1997 to April 1998 (Harper & Konstan 2015, "The MovieLens Datasets"). The files
are in the wheel of RecBole. Their licence allows research, and neither redistribution nor use for profit without
permission: what is written here stays on this machine.

The split is by time. The test people are the 30 % who came last; training ends before the first of them came, so that
neither their ratings nor anything that was rated later is known. A row is a film that someone liked (4 or 5 stars):

query       the titles of the five films liked before it, the newest first
document    the film: title, year, genres
seen        films rated before it, liked or not, the oldest first: all in test rows, the newest ten in training rows
group       the person

`movies_new` has the test rows whose film is in no training row. All films of training count as seen there: which of the
new ones?

Writes quickstart/data/movies_{train,corpus,new,test}.jsonl; always the same bytes.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
MOVIELENS = PackageFile("recbole", "1.2.1", "recbole/dataset_example/ml-100k/", megabytes=3)
HISTORY, MIN_HISTORY = 5, 3  # liked films of a query: at most, at least
NEWEST = 10  # films that `seen` of a training row names
TEST_PEOPLE, TEST_ROWS = 0.3, 10  # share of all people; newest rows of each
LIKED = 4  # stars

Rating = tuple[int, int, str]  # when, stars, film


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "movies_test.jsonl").exists():
        return
    rows = split(MOVIELENS.fetch())
    DATA.mkdir(exist_ok=True)
    for name, part in rows.items():
        lines = [json.dumps(x, ensure_ascii=False) + "\n" for x in part]
        (DATA / f"movies_{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"movies_{name}: {len(part)} rows, {len({x['group'] for x in part if 'group' in x})} people")


def split(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The training rows, all films, and the test rows, from RecBole's files."""
    items = table(folder / "ml-100k.item")
    films = {film: text_of(*facts) for film, *facts in items if facts[1].isdigit()}  # one is "unknown", without a year
    ratings: dict[str, list[Rating]] = {}
    for person, film, stars, when in sorted(table(folder / "ml-100k.inter"), key=lambda x: (int(x[3]), int(x[1]))):
        if film in films:
            ratings.setdefault(person, []).append((int(when), int(stars), films[film]))
    arrivals = sorted(rated[0][0] for rated in ratings.values())
    end = arrivals[round((1 - TEST_PEOPLE) * len(arrivals))]
    early = {person: [x for x in rated if x[0] < end] for person, rated in ratings.items()}
    late = {person: rated for person, rated in ratings.items() if rated[0][0] >= end}
    train = [x for person, rated in early.items() for x in rows_of(person, rated, NEWEST)]
    test = [x for person, rated in late.items() for x in list(rows_of(person, rated))[-TEST_ROWS:]]
    known = {film for x in train for film in (x["document"], *x["seen"])}
    new = [{**x, "seen": [*sorted(known - {*x["seen"]}), *x["seen"]]} for x in test if x["document"] not in known]
    return {"train": train, "corpus": [{"text": x} for x in sorted(set(films.values()))], "new": new, "test": test}


def table(file: Path) -> list[list[str]]:
    """The cells of a RecBole file, without its first line."""
    return [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]


def text_of(title: str, year: str, genres: str) -> str:
    """A film as text.

    >>> text_of("Usual Suspects, The", "1995", "Crime Thriller")
    'The Usual Suspects (1995): Crime Thriller'
    """
    name, _, article = title.rpartition(", ")
    title = f"{article} {name}" if article in ("The", "A", "An") else title
    return f"{title} ({year}): {genres}"


def title_of(film: str) -> str:
    """The title in a film's text."""
    return film.rpartition(" (")[0]


def rows_of(person: str, rated: list[Rating], most_seen: int | None = None) -> Iterator[dict[str, Any]]:
    """A row for each film that a person liked, from the fourth on.

    Args:
        rated: the oldest first.
        most_seen: the newest films that `seen` names; None: all.
    """
    liked: list[str] = []
    seen: list[str] = []
    for _, stars, film in rated:
        if stars >= LIKED and film not in seen:
            if len(liked) >= MIN_HISTORY:
                query = "; ".join(title_of(x) for x in liked[: -HISTORY - 1 : -1])
                newest = seen[-most_seen:] if most_seen else seen
                yield {"query": query, "document": film, "seen": list(newest), "group": person}
            liked.append(film)
        if film not in seen:
            seen.append(film)


if __name__ == "__main__":
    main()
