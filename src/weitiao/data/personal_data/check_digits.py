"""Check digits: Luhn (bank cards), ISO 7064 MOD 11-2 (resident IDs) and MOD 31-3 (unified social credit codes)."""

USCC_CHARACTERS = "0123456789ABCDEFGHJKLMNPQRTUWXY"  # GB 32100-2015, table 1
DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)  # the digits of 2 x, added up


def has_luhn(digits: str) -> bool:
    """Whether the last digit is right by ISO/IEC 7812-1, annex B.

    >>> has_luhn("4111111111111111"), has_luhn("4111111111111112")
    (True, False)
    """
    single, double = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, single)) + sum(DOUBLED[int(x)] for x in double)) % 10 == 0


def resident_id_check(first: str) -> str:
    """The 18th character of a resident ID (GB 11643-1999), by ISO 7064 MOD 11-2.

    >>> resident_id_check("11010519491231002")
    'X'
    """
    total = sum(pow(2, 17 - i, 11) * int(x) for i, x in enumerate(first))
    return "10X98765432"[total % 11]


def uscc_check(first: str) -> str:
    """The 18th character of a unified social credit code (GB 32100-2015).

    >>> uscc_check("91350100M000100Y4")
    '3'
    """
    total = sum(pow(3, i, 31) * USCC_CHARACTERS.index(x) for i, x in enumerate(first))
    return USCC_CHARACTERS[-total % 31]
