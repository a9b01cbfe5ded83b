"""Bank card numbers: an issuer's first digits and Luhn's check digit (ISO/IEC 7812-1), or a word before them."""

import re

from weitiao.data.personal_data.check_digits import has_luhn
from weitiao.data.personal_data.identifier import END, FIRST, FIVE_DIGITS, context, digits_of, is_other_number
from weitiao.data.personal_data.stand_ins import Key, reshaped

LABELS = ("[BANK_CARD]", "[银行卡号]")
TRIGGER = FIVE_DIGITS
NEEDS_DIGIT = True
PATTERN = re.compile(
    rf"[1-9]{FIRST}(?:[0-9]{{13,18}}|[0-9]{{3}}(?:[ -][0-9]{{4}}){{3}}(?:[ -]?[0-9]{{1,3}})?"
    rf"|(?<=3)[47][0-9]{{2}}[ -][0-9]{{6}}[ -][0-9]{{5}}|[0-9]{{5}}[ -][0-9]{{10,13}}){END}"
)
ISSUERS = re.compile(
    r"62[0-9]{14,17}|9558[0-9]{15}|9559[0-9]{15}"  # UnionPay; ICBC and ABC before it
    r"|4[0-9]{15}(?:[0-9]{3})?"
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # Visa, Mastercard
    r"|3[47][0-9]{13}|35(?:2[89]|[3-8][0-9])[0-9]{12}|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12}"  # Amex, JCB, Discover
)
WORDS = re.compile(
    r"卡号|银行卡|储蓄卡|信用卡|借记卡|银行账[号户]|银行帐[号户]|账号|(?<![A-Za-z])card(?![A-Za-z])|credit|debit|visa|mastercard|amex",
    re.IGNORECASE,
)


def grade(match: re.Match[str]) -> bool | None:
    """Certain with issuer and check digit, or with a word before it; never where it is called an order number."""
    number = digits_of(match[0])
    if is_other_number(match):
        return None
    if ISSUERS.fullmatch(number) and has_luhn(number):
        return True
    return (len(number) >= 15 and context(match, WORDS)) or None


def stand_in(value: str, key: Key) -> str:
    """Starts with 00, which no issuer does, and fails Luhn's check."""
    number = digits_of(value)
    digits = "00" + key.draw("bank_card", number).text(len(number) - 2)
    if has_luhn(digits):
        digits = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    return reshaped(value, digits)
