from __future__ import annotations

import asyncio

import pytest

from personae_runtime.evals.pii import detector
from personae_runtime.policy import identifiers
from personae_runtime.policy.decision import PolicyContext, Stage
from personae_runtime.policy.policy import Policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.load(None, ["ngram"], 1000.0)


@pytest.mark.parametrize(
    ("entity", "text", "value"),
    [
        ("CREDIT_CARD", "pay with 4111 1111 1111 1111 now", "4111 1111 1111 1111"),
        ("CREDIT_CARD", "amex 3782-822463-10005", "3782-822463-10005"),
        ("CREDIT_CARD", "a Maestro card: 503802053770.", "503802053770"),
        ("CREDIT_CARD", "older JCB 180000826105910", "180000826105910"),
        ("IBAN_CODE", "to DE89 3704 0044 0532 0130 00 please", "DE89 3704 0044 0532 0130 00"),
        ("IBAN_CODE", "PT50000201231234567890154", "PT50000201231234567890154"),
        ("IBAN_CODE", "gb82west12345698765432!", "gb82west12345698765432"),
        ("US_SSN", "ssn: 460-89-9847", "460-89-9847"),
        ("US_SSN", "my social security number is 460899847", "460899847"),
        ("IP_ADDRESS", "from 16.244.11.141.", "16.244.11.141"),
        ("IP_ADDRESS", "6e40:4041:c617:e898:c11:40d2:c669:2eb4", "6e40:4041:c617:e898:c11:40d2:c669:2eb4"),
        ("IP_ADDRESS", "ping 2001:db8::1 again", "2001:db8::1"),
        ("IP_ADDRESS", "mapped ::ffff:192.0.2.128", "::ffff:192.0.2.128"),
        ("EMAIL_ADDRESS", "Write to Jane.Doe+x@mail.example.co.uk.", "Jane.Doe+x@mail.example.co.uk"),
        ("PHONE_NUMBER", "call +44 7700 900 123 today", "+44 7700 900 123"),
        ("PHONE_NUMBER", "fax +46 (0)8 928 571 38", "+46 (0)8 928 571 38"),
        ("PHONE_NUMBER", "00351 912 345 678", "00351 912 345 678"),
        ("PHONE_NUMBER", "ring (212) 555-0143 ext 12", "(212) 555-0143 ext 12"),
        ("PHONE_NUMBER", "01.84.17.61.18", "01.84.17.61.18"),
        ("PHONE_NUMBER", "030 12345678 in Berlin", "030 12345678"),
        ("PHONE_NUMBER", "Phone:\n4670 3395", "4670 3395"),
        ("PHONE_NUMBER", "please call me at 46703395", "46703395"),
        ("PHONE_NUMBER", "2025550143-Office", "2025550143"),
        ("PHONE_NUMBER", "Tel.: ８８-４４-６６-９８", "８８-４４-６６-９８"),
    ],
)
def test_personal_data_is_found_with_its_exact_span(policy: Policy, entity: str, text: str, value: str) -> None:
    found = [(f.entity, text[f.start : f.end]) for f in detector(policy)(text)]
    assert found == [(entity, value)]


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112 is ready",  # wrong check digit
        "tracking 9411111111111116",  # right check digit, no issuer
        "GB82 WEST 1234 5698 7654 33",
        "IBAN DE8937040044053201300",  # a digit short
        "000-12-3456 and 666-12-3456 and 900-12-3456 and 123-00-4567 and 123-45-0000",
        "version 300.1.2.3 at 14:11:22",
        "use std::vector and a::b",
        "me @ the station, or user@localhost",
        "from 2020-06-20 to 01-02-2024, or 20.06.2020",
        "it costs 1,299.00 for 24 of 365 days",
        "+999 12345 6789",
        "rooms 101, 102 and 103; 64677 Uruguay",
        "the Fiat 500 1999 model",
        "1760000000 seconds since 1970",
    ],
)
def test_dates_amounts_and_invalid_numbers_are_not_personal_data(policy: Policy, text: str) -> None:
    assert list(detector(policy)(text)) == []


def test_what_has_check_digits_is_no_phone_number(policy: Policy) -> None:
    text = "IBAN GB82 WEST 1234 5698 7654 32, card 5500 0000 0000 0004"
    assert {f.entity for f in detector(policy)(text)} == {"IBAN_CODE", "CREDIT_CARD"}


def test_every_iban_length_is_that_of_the_standard_range() -> None:
    assert all(len(c) == 2 and 15 <= n <= 34 for c, n in identifiers.IBAN_LENGTHS.items())


def test_network_addresses_and_phone_numbers_are_taken_out_of_a_companions_words(policy: Policy) -> None:
    context = PolicyContext(persona_type="companion")

    async def said(text: str) -> str:
        gate = policy.open_stream(context)
        gate.feed(text)
        return (await gate.clear(final=True)).text

    assert asyncio.run(said("I saw you at 48.90.248.226, Ana.")) == "I saw you at [network address removed], Ana."
    assert asyncio.run(said("It is 01.84.17.61.18 there.")) == "It is [phone number removed] there."
    decision = asyncio.run(policy.decide(Stage.MEMORY, "my number is 460-89-9847", context))
    assert decision.reason_code == "PII_SECRET"
