"""The library of a made-up company, for prepare_code_library.py: `depot`, which no base model has seen.

Rows are dicts. Money is in mills (a thousandth of a euro), days are numbers since 2020-01-01, and a row without a `stamp`
is a draft. What a newcomer would guess is wrong.
"""

from datetime import date, timedelta

TABLES = {}


def rows(table):
    """The valid rows of a table."""
    return [x for x in TABLES[table] if x["stamp"]]


def drafts(table):
    """The drafts of a table."""
    return [x for x in TABLES[table] if not x["stamp"]]


def where(found, **wanted):
    """The rows with these values."""
    return [x for x in found if all(x[key] == value for key, value in wanted.items())]


def since(found, day):
    """The rows from a day on: "2024-03-01"."""
    return [x for x in found if x["day"] >= number_of(day)]


def until(found, day):
    """The rows before a day."""
    return [x for x in found if x["day"] < number_of(day)]


def above(found, euros):
    """The rows of more than an amount."""
    return [x for x in found if x["amount"] > mills(euros)]


def total(found):
    """The sum of the amounts, in mills."""
    return sum(x["amount"] for x in found)


def tally(found, key):
    """Value -> number of rows, the most frequent first, equal ones by value."""
    values = [x[key] for x in found]
    return dict(sorted(((x, values.count(x)) for x in set(values)), key=lambda x: (-x[1], x[0])))


def latest(found):
    """The row of the last day; None: there is none."""
    return max(found, key=lambda x: (x["day"], x["id"]), default=None)


def label(row):
    """What people call a row: "D-00042"; "-" for None."""
    return f"D-{row['id']:05d}" if row else "-"


def euros(amount):
    """Mills as all functions return them: "12.50 EUR"."""
    return f"{amount / 1000:.2f} EUR"


def mills(amount):
    """Euros as mills."""
    return round(amount * 1000)


def number_of(day):
    """The number of a day."""
    return (date.fromisoformat(day) - date(2020, 1, 1)).days


def day_of(number):
    """A day as text."""
    return (date(2020, 1, 1) + timedelta(number)).isoformat()


def audit(value, code):
    """What every function returns its result through. The code is "table/result": "orders/per_city"."""
    return code, value
