"""What a token must be to name a caller, and where the keys come from that say so."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms

from personae_runtime.config import JwtSettings
from personae_runtime.errors import ConfigError, Unauthenticated, Unavailable
from personae_serve.gateway.auth import Authenticator, Principal
from personae_serve.gateway.tokens import JwtVerifier, SigningKeys, read_key_set, usable_keys
from tests.credentials import ISSUER, Issuer, make_key, public_jwk, unsigned
from tests.e2e.support import api_key

NOW = 1_800_000_000.0
LEEWAY_S, LIFETIME_S, RETRY_S, MAX_AGE_S = 30, 3600, 10, 1000


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Source:
    """A key set that a test changes, or takes away, and whose reads are counted."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.reads = 0
        self.down = False
        self.read_twice = threading.Event()

    def __call__(self, source: str, timeout_s: float) -> Any:
        self.reads += 1
        if self.reads == 2:
            self.read_twice.set()
        if self.down:
            raise OSError("no route to host")
        return self.issuer.key_set


class Tokens:
    """A verifier of one issuer's tokens, with clocks."""

    def __init__(self, issuer: Issuer, **changed: Any) -> None:
        self.issuer = issuer
        self.source = Source(issuer)
        self.clock, self.monotonic = Clock(), Clock(0.0)
        limits = {"leeway_s": LEEWAY_S, "max_lifetime_s": LIFETIME_S, "jwks_retry_s": RETRY_S}
        self.settings = JwtSettings(**{**issuer.settings("unused", jwks_max_age_s=MAX_AGE_S), **limits, **changed})
        self.keys = SigningKeys(self.settings, clock=self.monotonic, read=self.source)
        self.verifier = JwtVerifier(self.settings, self.keys, clock=self.clock)

    async def principal(self, token: str) -> Principal:
        return await self.verifier.principal(token)

    async def refusal(self, token: str) -> Unauthenticated:
        with pytest.raises(Unauthenticated) as caught:
            await self.verifier.principal(token)
        return caught.value


@asynccontextmanager
async def started(issuer: Issuer, **changed: Any) -> AsyncIterator[Tokens]:
    tokens = Tokens(issuer, **changed)
    await tokens.keys.start()
    try:
        yield tokens
    finally:
        await tokens.keys.close()


@pytest.fixture(scope="module")
def known() -> Issuer:
    """An issuer whose key stays."""
    return Issuer()


@pytest.fixture
async def tokens(known: Issuer) -> AsyncIterator[Tokens]:
    async with started(known) as made:
        yield made


# -- what a token says --------------------------------------------------------


async def test_a_token_speaks_for_its_subject_until_it_expires(tokens: Tokens) -> None:
    token = tokens.issuer.token(now=NOW, permissions=["sessions.*", "memories.list"])
    assert await tokens.principal(token) == Principal(
        "jwt", "demo", "ann", ("sessions.*", "memories.list"), NOW + 600 + LEEWAY_S
    )


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "EdDSA"])
async def test_each_kind_of_algorithm_works(algorithm: str) -> None:
    issuer = Issuer(algorithm)
    async with started(issuer) as tokens:
        assert (await tokens.principal(issuer.token(now=NOW))).user == "ann"


async def test_a_service_token_names_no_user_and_is_named_in_traces(tokens: Tokens) -> None:
    token = tokens.issuer.token(now=NOW, sub="backend@clients", personae_role="service")
    principal = await tokens.principal(token)
    assert (principal.user, principal.key_id) == (None, "jwt:backend@clients")


async def test_only_the_word_service_makes_a_service_token(tokens: Tokens) -> None:
    assert (await tokens.principal(tokens.issuer.token(now=NOW, personae_role="user"))).user == "ann"
    for role in ("Service", "admin", "", True, ["service"], {"service": 1}):
        refused = await tokens.refusal(tokens.issuer.token(now=NOW, personae_role=role))
        assert (refused.reason, refused.metadata) == ("TOKEN_INVALID", {"claim": "personae_role"})


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("sessions.* memories.list", ("sessions.*", "memories.list")),
        (["personas.get"], ("personas.get",)),
    ],
)
async def test_permissions_are_a_list_or_words_and_nothing_by_default(
    tokens: Tokens, value: Any, held: tuple[str, ...]
) -> None:
    assert (await tokens.principal(tokens.issuer.token(now=NOW, permissions=value))).permissions == held


async def test_claims_can_have_other_names(known: Issuer) -> None:
    names = {
        "tenant_claim": "https://x.example/tenant",
        "permissions_claim": "scope",
        "role_claim": "https://x.example/role",
    }
    async with started(known, **names) as tokens:
        claims = {"tenant": None, "https://x.example/tenant": "acme", "scope": "personas.get", "permissions": ["*"]}
        principal = await tokens.principal(known.token(now=NOW, **claims, **{"https://x.example/role": "service"}))
    assert (principal.tenant, principal.permissions, principal.user) == ("acme", ("personas.get",), None)


# -- what a token must not be -------------------------------------------------


async def test_no_other_algorithm_is_taken_whatever_the_header_says(tokens: Tokens) -> None:
    claims = json.loads(_payload(tokens.issuer.token(now=NOW)))
    public = tokens.issuer.keys["k1"].public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    confused = unsigned({"alg": "HS256", "kid": "k1"}, claims)
    signed = confused.rsplit(".", 1)[0]
    mac = hmac.digest(secret, signed.encode(), sha256)
    other = Issuer("RS256", {"k1": make_key("RS256")})
    for token in (
        unsigned({"alg": "HS256", "kid": "k1"}, claims, mac),
        unsigned({"alg": "none", "kid": "k1"}, claims),
        unsigned({"alg": "None", "kid": "k1"}, claims),
        unsigned({"alg": ["ES256"], "kid": "k1"}, claims),
        unsigned({"kid": "k1"}, claims),
        other.token(now=NOW),
    ):
        refused = await tokens.refusal(token)
        assert (refused.reason, refused.metadata) == ("TOKEN_INVALID", {"claim": "alg"})
    assert tokens.source.reads == 1


async def test_a_signature_of_another_key_or_none_is_refused(tokens: Tokens) -> None:
    forged = Issuer().token(now=NOW)
    assert (await tokens.refusal(forged)).reason == "TOKEN_INVALID"
    claims = json.loads(_payload(forged))
    assert (await tokens.refusal(unsigned({"alg": "ES256", "kid": "k1"}, claims))).reason == "TOKEN_INVALID"


@pytest.mark.parametrize("extension", ["jku", "jwk", "x5c", "crit"])
async def test_keys_in_a_header_are_not_used_and_unknown_extensions_refused(tokens: Tokens, extension: str) -> None:
    forger = Issuer()
    header = {"alg": "ES256", "kid": "k1", extension: forger.key_set["keys"][0] if extension == "jwk" else ["x"]}
    assert (await tokens.refusal(unsigned(header, {}, b"x" * 64))).reason == "TOKEN_INVALID"


@pytest.mark.parametrize(
    ("claims", "claim"),
    [
        ({"aud": "another"}, "aud"),
        ({"aud": ["another", "one"]}, "aud"),
        ({"iss": "https://evil.example/"}, "iss"),
        ({"iss": ISSUER.rstrip("/")}, "iss"),
        *(({name: None}, name) for name in ("iss", "aud", "sub", "exp", "iat", "tenant")),
        ({"tenant": "No Tenant"}, "tenant"),
        ({"tenant": "demo/personas/x"}, "tenant"),
        ({"tenant": 7}, "tenant"),
        ({"sub": "a/b"}, "sub"),
        ({"sub": "auth0|7"}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": "a\nb", "personae_role": "service"}, "sub"),
        ({"permissions": 7}, "permissions"),
        ({"permissions": ["a", 7]}, "permissions"),
        ({"permissions": {"*": True}}, "permissions"),
        ({"exp": "tomorrow"}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": float("nan")}, "exp"),
        ({"exp": float("inf")}, "exp"),
        ({"exp": 10**300}, "exp"),
        ({"exp": -1}, "exp"),
        ({"iat": "now"}, "iat"),
        ({"nbf": []}, "nbf"),
        ({"exp": NOW + LIFETIME_S + 1}, "exp"),
    ],
    ids=str,
)
async def test_a_wrong_or_missing_claim_is_refused_by_name(tokens: Tokens, claims: dict[str, Any], claim: str) -> None:
    refused = await tokens.refusal(tokens.issuer.token(now=NOW, **claims))
    assert (refused.reason, refused.metadata) == ("TOKEN_INVALID", {"claim": claim})


async def test_one_audience_of_several_is_enough(tokens: Tokens) -> None:
    assert await tokens.principal(tokens.issuer.token(now=NOW, aud=["other", tokens.settings.audience]))


async def test_a_subject_that_is_no_text_is_refused(tokens: Tokens) -> None:
    assert (await tokens.refusal(tokens.issuer.token(now=NOW, sub=7))).reason == "TOKEN_INVALID"


async def test_a_token_holds_within_its_time_and_the_leeway(tokens: Tokens) -> None:
    token = tokens.issuer.token(now=NOW, nbf=NOW + 5)
    for now, reason in (
        (NOW - LEEWAY_S - 1, "TOKEN_NOT_YET_VALID"),
        (NOW - LEEWAY_S + 4, "TOKEN_NOT_YET_VALID"),
        (NOW - LEEWAY_S + 5, None),
        (NOW + 600 + LEEWAY_S - 1, None),
        (NOW + 600 + LEEWAY_S, "TOKEN_EXPIRED"),
        (NOW * 2, "TOKEN_EXPIRED"),
    ):
        tokens.clock.now = now
        if reason is None:
            assert await tokens.principal(token)
        else:
            assert (await tokens.refusal(token)).reason == reason


def _payload(token: str) -> bytes:
    part = token.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


# -- whatever is sent ---------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_HEADERS = st.fixed_dictionaries(
    {},
    optional={"alg": st.sampled_from(["ES256", "none", "HS256"]) | _JSON, "kid": st.just("k1") | _JSON, "typ": _JSON},
)
_CLAIMS = st.fixed_dictionaries(
    {},
    optional={
        "iss": st.just(ISSUER) | _JSON,
        "aud": st.just("personae-tests") | _JSON,
        "sub": st.just("ann") | _JSON,
        "exp": st.just(NOW + 60) | _JSON,
        "iat": st.just(NOW) | _JSON,
        "nbf": _JSON,
        "tenant": st.just("demo") | _JSON,
        "permissions": _JSON,
        "personae_role": _JSON,
        "jti": _JSON,
    },
)
FIXED = Issuer()
Outcome = Callable[[str], "Principal | str"]


@pytest.fixture(scope="module")
def outcome() -> Iterator[Outcome]:
    """The principal of a token, or the reason that its sender would see; any other exception is a crash."""
    tokens = Tokens(FIXED)
    authenticator = Authenticator((), tokens.verifier)

    async def run(token: str) -> Principal | str:
        try:
            return await authenticator.authenticate({"authorization": f"Bearer {token}"})
        except Unauthenticated as error:
            return error.reason

    with asyncio.Runner() as runner:
        runner.run(tokens.keys.start())
        yield lambda token: runner.run(run(token))
        runner.run(tokens.keys.close())


@given(st.text(max_size=40) | st.lists(st.text(max_size=12), min_size=3, max_size=3).map(".".join))
@settings(max_examples=100)
def test_text_that_is_no_token_is_refused(outcome: Outcome, text: str) -> None:
    assert outcome(text) in ("TOKEN_INVALID", "CREDENTIALS_INVALID", "CREDENTIALS_MISSING")


@given(_HEADERS | _JSON, _JSON | _CLAIMS, st.binary(max_size=64))
@settings(max_examples=100)
def test_any_header_and_payload_without_a_right_signature_is_refused(
    outcome: Outcome, header: Any, payload: Any, signature: bytes
) -> None:
    assert outcome(unsigned(header, payload, signature)) == "TOKEN_INVALID"


@given(st.data())
@settings(max_examples=60)
def test_a_token_with_any_character_changed_is_refused(outcome: Outcome, data: st.DataObject) -> None:
    token = FIXED.token(now=NOW)
    at = data.draw(st.integers(0, len(token) - 3))  # the last two characters hold spare bits of the signature
    with_other = data.draw(st.sampled_from("aZ0-_.=é "))
    if token[at] != with_other:
        assert outcome(token[:at] + with_other + token[at + 1 :]) in ("TOKEN_INVALID", "CREDENTIALS_INVALID")


@given(_CLAIMS)
@settings(max_examples=150)
def test_any_signed_claims_make_a_principal_or_are_refused(outcome: Outcome, claims: dict[str, Any]) -> None:
    made = outcome(FIXED.sign(claims))
    if isinstance(made, Principal):
        assert made.tenant == "demo"
        assert claims["iss"] == ISSUER
        assert made.user is not None or claims["personae_role"] == "service"
    else:
        assert made.startswith("TOKEN_")


@pytest.mark.parametrize("depth", [900, 2000, 50_000])
def test_deep_nesting_is_refused(outcome: Outcome, depth: int) -> None:
    deep = base64.urlsafe_b64encode(b"[" * depth + b"]" * depth).rstrip(b"=").decode()
    head = unsigned({"alg": "ES256", "kid": "k1"}, {}).split(".")[0]
    assert outcome(f"{deep}.{deep}.AAAA") == "TOKEN_INVALID"
    assert outcome(f"{head}.{deep}.AAAA") == "TOKEN_INVALID"


# -- keys ---------------------------------------------------------------------


async def test_a_rotated_key_is_found_by_one_more_read() -> None:
    issuer = Issuer()
    async with started(issuer) as tokens:
        before = issuer.token(now=NOW)
        assert await tokens.principal(before)
        issuer.rotate("k2")
        tokens.monotonic.now += RETRY_S
        assert (await tokens.principal(issuer.token(now=NOW))).user == "ann"
        assert (await tokens.refusal(before)).metadata == {"claim": "kid"}
        assert tokens.source.reads == 2


async def test_unknown_keys_cause_one_read_per_retry_time_however_many_ask(tokens: Tokens) -> None:
    for round_ in range(1, 4):
        tokens.monotonic.now = round_ * RETRY_S
        made = (tokens.refusal(tokens.issuer.token(now=NOW, kid=f"no-such-key-{n}")) for n in range(50))
        assert {refused.reason for refused in await asyncio.gather(*made)} == {"TOKEN_INVALID"}
        assert tokens.source.reads == 1 + round_


async def test_while_the_source_is_down_the_keys_serve_on_for_a_time_and_then_nobody_is_let_in(
    tokens: Tokens,
) -> None:
    tokens.source.down = True
    tokens.monotonic.now = MAX_AGE_S
    assert await tokens.principal(tokens.issuer.token(now=NOW))
    tokens.monotonic.now += 1
    with pytest.raises(Unavailable) as caught:
        await tokens.principal(tokens.issuer.token(now=NOW))
    assert (caught.value.reason, caught.value.retry_after_s) == ("SIGNING_KEYS_UNAVAILABLE", RETRY_S)
    tokens.source.down = False
    tokens.monotonic.now += RETRY_S
    assert await tokens.principal(tokens.issuer.token(now=NOW))


async def test_a_key_set_without_usable_keys_does_not_replace_a_good_one() -> None:
    issuer = Issuer()
    async with started(issuer) as tokens:
        token, good = issuer.token(now=NOW), issuer.keys
        issuer.keys = {}
        tokens.monotonic.now = RETRY_S
        await tokens.keys.refresh()
        assert tokens.source.reads == 2
        issuer.keys = good
        assert await tokens.principal(token)


async def test_keys_are_read_again_in_the_background() -> None:
    async with started(Issuer(), jwks_ttl_s=0.001, jwks_retry_s=1e-9) as tokens:
        tokens.monotonic.now = 1.0
        assert await asyncio.to_thread(tokens.source.read_twice.wait, 20)


async def test_a_start_without_keys_fails_and_says_why(known: Issuer) -> None:
    tokens = Tokens(known)
    tokens.source.down = True
    with pytest.raises(ConfigError, match=r"auth\.jwt\.jwks: no signing keys from unused: OSError: no route to host"):
        await tokens.keys.start()
    await tokens.keys.close()


def small_rsa() -> dict[str, Any]:
    return public_jwk("k", rsa.generate_private_key(65537, 1024), "RS256")


def private_jwk() -> dict[str, Any]:
    key = make_key("ES256")
    made: dict[str, Any] = get_default_algorithms()["ES256"].to_jwk(key, as_dict=True)
    return {**made, "kid": "k"}


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("ES256", lambda: public_jwk("", make_key("ES256"), "ES256")),
        ("ES256", lambda: public_jwk("k", make_key("ES384"), "ES384", alg="ES256")),
        ("ES256", lambda: public_jwk("k", make_key("ES256"), "ES256", alg="ES384")),
        ("ES256", lambda: public_jwk("k", make_key("ES256"), "ES256", use="enc")),
        ("ES256", lambda: public_jwk("k", make_key("ES256"), "ES256", key_ops=["sign"])),
        ("ES256", lambda: public_jwk("k", make_key("ES256"), "ES256", x="!!")),
        ("ES256", private_jwk),
        ("ES256", lambda: {"kty": "oct", "kid": "k", "k": "c2VjcmV0"}),
        ("RS256", small_rsa),
        ("EdDSA", lambda: public_jwk("k", make_key("ES256"), "ES256", alg="EdDSA")),
    ],
)
def test_a_key_that_does_not_fit_is_left_out(algorithm: str, make: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="no key in it"):
        usable_keys({"keys": [make()]}, algorithm)
    good = public_jwk("good", make_key(algorithm), algorithm)
    assert list(usable_keys({"keys": [7, make(), good]}, algorithm)) == ["good"]


@given(
    _JSON
    | st.fixed_dictionaries(
        {
            "keys": st.lists(
                st.dictionaries(
                    st.sampled_from(["kty", "kid", "crv", "x", "y", "n", "e", "use", "alg", "key_ops"]),
                    st.sampled_from(["RSA", "EC", "P-256"]) | _JSON,
                )
            )
        }
    )
)
@settings(max_examples=150)
def test_no_document_breaks_the_reader_of_key_sets(document: Any) -> None:
    for algorithm in ("ES256", "RS256", "EdDSA"):
        with pytest.raises(ValueError, match=r"JSON Web Key Set|no key in it"):
            usable_keys(document, algorithm)


@contextmanager
def web_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jwks.json"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_key_set_is_read_from_a_file_or_the_web(tmp_path: Path, known: Issuer) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(json.dumps(known.key_set).encode())

    assert read_key_set(str(known.write(tmp_path / "jwks.json")), 5) == known.key_set
    with web_server(answer) as url:
        assert read_key_set(url, 5) == known.key_set


async def test_a_redirect_or_an_error_of_the_web_is_a_failed_read() -> None:
    def redirect(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", "http://127.0.0.1:1/")
        request.end_headers()

    def fail(request: BaseHTTPRequestHandler) -> None:
        request.send_error(503)

    for answer, status in ((redirect, "302"), (fail, "503")):
        with web_server(answer) as url:
            keys = SigningKeys(JwtSettings(**Issuer().settings(url)))
            with pytest.raises(ConfigError, match=status):
                await keys.start()
            await keys.close()


# -- beside API keys ----------------------------------------------------------


async def test_keys_and_tokens_work_side_by_side(tokens: Tokens) -> None:
    both = Authenticator([api_key("a.b.c", id="dotted")], tokens.verifier)
    assert (await both.authenticate({"authorization": "Bearer a.b.c"})).key_id == "dotted"
    token = tokens.issuer.token(now=NOW)
    assert (await both.authenticate({"authorization": f"bearer {token}"})).user == "ann"
    only_keys = Authenticator([api_key("k", id="key")])
    with pytest.raises(Unauthenticated) as caught:
        await only_keys.authenticate({"authorization": f"Bearer {token}"})
    assert caught.value.reason == "CREDENTIALS_INVALID"
