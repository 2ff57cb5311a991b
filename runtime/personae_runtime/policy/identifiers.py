"""Checks of numbers and addresses that point at a person: check digits, issuers, lengths, assigned ranges.

Each takes normalised text (lower case, ASCII digits, straight dashes) that a
pattern has found, is a pure function of it, and says whether it can be what it
looks like. Patterns say what is looked at; these keep order numbers, dates and
amounts out.
"""

from __future__ import annotations

import ipaddress
import re

_DIGITS = frozenset("0123456789")

IBAN_LENGTHS = {
    "ad": 24, "ae": 23, "al": 28, "at": 20, "az": 28, "ba": 20, "be": 16, "bg": 22, "bh": 22, "br": 29, "by": 28,
    "ch": 21, "cr": 22, "cy": 28, "cz": 24, "de": 22, "dk": 18, "do": 28, "ee": 20, "eg": 29, "es": 24, "fi": 18,
    "fo": 18, "fr": 27, "gb": 22, "ge": 22, "gi": 23, "gl": 18, "gr": 27, "gt": 28, "hr": 21, "hu": 28, "ie": 22,
    "il": 23, "iq": 23, "is": 26, "it": 27, "jo": 30, "kw": 30, "kz": 20, "lb": 28, "lc": 32, "li": 21, "lt": 20,
    "lu": 20, "lv": 21, "ly": 25, "mc": 27, "md": 24, "me": 22, "mk": 19, "mr": 27, "mt": 31, "mu": 30, "nl": 18,
    "no": 15, "pk": 24, "pl": 28, "ps": 29, "pt": 25, "qa": 29, "ro": 24, "rs": 22, "sa": 24, "sc": 31, "sd": 18,
    "se": 24, "si": 19, "sk": 24, "sm": 27, "st": 25, "sv": 28, "tl": 23, "tn": 24, "tr": 26, "ua": 29, "va": 22,
    "vg": 24, "xk": 20,
}  # fmt: skip
"""Characters of an IBAN by country, from the registry that ISO 13616 refers to (SWIFT IBAN Registry)."""

_ISSUERS = (
    # prefix range (of the same number of digits), lengths. ISO/IEC 7812; the schemes' published ranges.
    ("34", "34", {15}), ("37", "37", {15}),  # American Express
    ("4", "4", {13, 16, 19}),  # Visa
    ("51", "55", {16}), ("2221", "2720", {16}),  # Mastercard
    ("300", "305", {14, 16}), ("3095", "3095", {14, 16}), ("36", "36", {14, 16}), ("38", "39", {14, 16}),  # Diners
    ("6011", "6011", {16, 19}), ("644", "649", {16, 19}), ("65", "65", {16, 19}), ("622126", "622925", {16, 19}),
    ("35", "35", {16, 19}), ("3088", "3094", {16}), ("3096", "3102", {16}), ("3112", "3120", {16}),  # JCB
    ("3158", "3159", {16}), ("3337", "3349", {16}), ("2131", "2131", {15}), ("1800", "1800", {15}),  # older JCB
    ("62", "62", {16, 17, 18, 19}), ("81", "81", {16}),  # UnionPay
    ("50", "50", set(range(12, 20))), ("56", "58", set(range(12, 20))),  # Maestro
    ("6", "6", set(range(12, 20))),  # Maestro, RuPay, Elo, Hipercard and others
    ("9792", "9792", {16}), ("2200", "2204", {16, 17, 18, 19}), ("1", "1", {15}),  # Troy, Mir, UATP
)  # fmt: skip

_COUNTRY_CODES = frozenset(
    str(code)
    for code in (
        1, 7, 20, 27, 30, 31, 32, 33, 34, 36, 39, 40, 41, 43, 44, 45, 46, 47, 48, 49, 51, 52, 53, 54, 55, 56, 57, 58,
        60, 61, 62, 63, 64, 65, 66, 81, 82, 84, 86, 90, 91, 92, 93, 94, 95, 98, 211, 212, 213, 216, 218, 220, 221,
        222, 223, 224, 225, 226, 227, 228, 229, 230, 231, 232, 233, 234, 235, 236, 237, 238, 239, 240, 241, 242, 243,
        244, 245, 246, 247, 248, 249, 250, 251, 252, 253, 254, 255, 256, 257, 258, 260, 261, 262, 263, 264, 265, 266,
        267, 268, 269, 290, 291, 297, 298, 299, 350, 351, 352, 353, 354, 355, 356, 357, 358, 359, 370, 371, 372, 373,
        374, 375, 376, 377, 378, 380, 381, 382, 383, 385, 386, 387, 389, 420, 421, 423, 500, 501, 502, 503, 504, 505,
        506, 507, 508, 509, 590, 591, 592, 593, 594, 595, 596, 597, 598, 599, 670, 672, 673, 674, 675, 676, 677, 678,
        679, 680, 681, 682, 683, 685, 686, 687, 688, 689, 690, 691, 692, 800, 808, 850, 852, 853, 855, 856, 870, 878,
        880, 881, 882, 883, 886, 888, 960, 961, 962, 963, 964, 965, 966, 967, 968, 970, 971, 972, 973, 974, 975, 976,
        977, 979, 992, 993, 994, 995, 996, 998,
    )
)  # fmt: skip
"""Assigned country codes (ITU-T E.164, list of assigned codes)."""

_DATE = re.compile(
    r"(?:(?:19|20)[0-9]{2}[ ./-][0-9]{1,2}[ ./-][0-9]{1,2}|[0-9]{1,2}[ ./-][0-9]{1,2}[ ./-](?:19|20)?[0-9]{2})\Z"
)
_YEARS = re.compile(r"[0-9]{3}[ -](?:19|20)[0-9]{2}\Z")
_LABELLED_NUMBER = re.compile(r"[+(]?[0-9](?:[0-9 ()./-]*[0-9])?(?: ?(?:x|ext\.?|extension) ?[0-9]{1,6})?")


def digits_of(text: str) -> str:
    """Its ASCII digits."""
    return "".join(c for c in text if c in _DIGITS)


def luhn(text: str) -> bool:
    """ISO/IEC 7812-1 check digit over the digits of `text`, 12 to 19 of them and not all equal."""
    digits = [int(c) for c in digits_of(text)]
    if not 12 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = (d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits)))
    return sum(doubled) % 10 == 0


def card_number(text: str) -> bool:
    """A payment card number: check digit, and a prefix that some scheme issues at this length."""
    digits = digits_of(text)
    return luhn(digits) and any(
        low <= digits[: len(low)] <= high and len(digits) in lengths for low, high, lengths in _ISSUERS
    )


def iban(text: str) -> bool:
    """ISO 13616: the country's length and the check digits (ISO 7064 mod 97-10), spaces and dashes ignored."""
    compact = "".join(c for c in text if c not in " -")
    if IBAN_LENGTHS.get(compact[:2]) != len(compact) or not compact.isascii() or not compact.isalnum():
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def us_ssn(text: str) -> bool:
    """A US social security number that can have been issued: no area 000, 666 or 900 to 999, no group 00, no serial
    0000 (SSA, POMS RM 10201.035); not the two that advertisements made known."""
    digits = digits_of(text)
    return (
        len(digits) == 9
        and digits[:3] not in ("000", "666")
        and digits[0] != "9"
        and digits[3:5] != "00"
        and digits[5:] != "0000"
        and digits not in ("078051120", "219099999")
    )


def ip_address(text: str) -> bool:
    """An IPv4 or IPv6 address (RFC 4291 text forms). `a::b` alone is a name of some programming language."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 4:
        return True
    groups = [g for g in text.split(":") if g]
    return any(c in _DIGITS for c in text) and (len(groups) >= 3 or text[0] in "2f:") and text != "::"


def phone(text: str) -> bool:
    """A telephone number's digits and shape: 7 to 15 digits (E.164), an assigned country code after `+` or `00`,
    no North American area or exchange that begins with 0 or 1 where it claims to be one, no date."""
    number = re.split(r" ?(?:x|ext)", text, maxsplit=1)[0]
    digits = digits_of(number)
    if not 7 <= len(digits) <= 15 or number.count("(") != number.count(")") or len(set(digits)) == 1:
        return False
    if re.search(r"[ ./-]{2}|[./-]\(|\)[./]|\(\)", number.replace(") ", ")").replace(") -", ")")):
        return False
    if _DATE.match(number) or _YEARS.match(number):
        return False
    international = digits if "+" in number else digits[2:] if digits.startswith("00") else ""
    if international:
        if international.startswith("1"):
            return len(international) == 11 and international[1] in "23456789"
        return len(international) >= 8 and any(international[:n] in _COUNTRY_CODES for n in (1, 2, 3))
    return True


def labelled_phone(text: str) -> bool:
    """As `phone`, for a number with a word before or after it that says so."""
    at = labelled_number(text)
    return at is not None and phone(text[at[0] : at[1]])


def labelled_number(text: str) -> tuple[int, int] | None:
    """Where the longest run of digits and their punctuation stands in a match with a label, [start, end)."""
    found = [m.span() for m in _LABELLED_NUMBER.finditer(text)]
    return max(found, key=lambda s: s[1] - s[0], default=None)
