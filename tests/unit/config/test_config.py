from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personae_runtime.config import (
    MASK,
    Settings,
    configuration_markdown,
    describe,
    effective_settings,
    load_settings,
)
from personae_runtime.errors import ConfigError
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("no_personae_environment")

KEY = base64.b64encode(bytes(32)).decode()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "personae.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(config_file: Path | None = None, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(config_file, **overrides)
    return str(caught.value)


def test_the_defaults_make_a_development_host_on_loopback() -> None:
    settings = load_settings()
    assert settings.profile == "development"
    assert (settings.gateway.host, settings.gateway.port) == ("127.0.0.1", 7400)


def test_sources_merge_key_by_key_and_the_stronger_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "[gateway]\nport = 1\nview_buffer_events = 9\nkeepalive_time_s = 5\n")
    monkeypatch.setenv("PERSONAE_GATEWAY__PORT", "2")
    monkeypatch.setenv("PERSONAE_GATEWAY__VIEW_BUFFER_EVENTS", "10")
    gateway = load_settings(path, gateway={"port": 3}).gateway
    assert (gateway.port, gateway.view_buffer_events, gateway.keepalive_time_s) == (3, 10, 5.0)
    assert gateway.max_concurrent_streams == 1000


def test_the_file_can_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_CONFIG", str(write(tmp_path, "[gateway]\nport = 1234\n")))
    assert load_settings().gateway.port == 1234


def test_a_wrong_value_is_shown_with_key_variable_source_expectation_and_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "[gateway]\nport = 80000\n")
    monkeypatch.setenv("PERSONAE_ENGINE__TEMPERATURE", "warm")
    message = refusal(path)
    assert "2 settings are wrong" in message
    assert f"gateway.port (PERSONAE_GATEWAY__PORT, in {path})" in message
    assert "given:    80000" in message
    assert "expected: integer, 0 to 65535" in message
    assert "example:  7400" in message
    assert "engine.temperature (PERSONAE_ENGINE__TEMPERATURE, set in the environment)" in message
    assert "given:    'warm'" in message


def test_the_error_names_the_keys_for_programs() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(gateway={"port": -1}, engine={"parallel": 0})
    assert set(caught.value.metadata["keys"].split(",")) == {"gateway.port", "engine.parallel"}
    assert ("gateway.port", "integer, 0 to 65535") in caught.value.violations


@pytest.mark.parametrize(
    ("toml", "meant"),
    [
        ("[gateway]\nprot = 1\n", "gateway.port"),
        ("dta_dir = 'x'\n", "data_dir"),
        ("[[auth.api_keys]]\nid='a'\nsha256='" + "0" * 64 + "'\ntenant='t'\nusr='u'\n", "user"),
    ],
)
def test_an_unknown_key_is_refused_with_what_was_meant(tmp_path: Path, toml: str, meant: str) -> None:
    assert f"did you mean {meant}?" in refusal(write(tmp_path, toml))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PERSONAE_GATWAY__PORT", "PERSONAE_GATEWAY__PORT"),
        ("PERSONAE_GATEWAY__PROT", "gateway.port"),
        ("PERSONAE_MODEL_DIR", "PERSONAE_MODELS_DIR"),
    ],
)
def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, meant: str) -> None:
    monkeypatch.setenv(name, "1")
    assert f"did you mean {meant}?" in refusal()


@pytest.mark.parametrize("name", ["PERSONAE_EVAL_DATA", "PERSONAE_API_KEY", "PERSONAE_TARGET"])
def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    load_settings()


def test_a_list_in_the_environment_that_is_not_json_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_POLICY__SCORERS", "ngram")
    message = refusal()
    assert "policy.scorers (PERSONAE_POLICY__SCORERS)" in message
    assert """PERSONAE_POLICY__SCORERS='["ngram", "injection"]'""" in message


def test_a_toml_syntax_error_says_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, "profile = 'development'\n[gateway\nport = 1\n")
    message = refusal(path)
    assert str(path) in message
    assert "line 2" in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none.toml") in refusal(tmp_path / "none.toml")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_addresses_are_accepted(host: str) -> None:
    assert load_settings(gateway={"host": host}).gateway.host == host


TLS = {"certificate": "tls.crt", "private_key": "tls.key"}
JWT = {"issuer": "https://id.example/", "audience": "personae", "jwks": "https://id.example/jwks.json"}
API_KEY = {"id": "a", "sha256": "0" * 64, "tenant": "t"}
ELSEWHERE = ["0.0.0.0", "192.168.1.2", "::", "example.com"]


@pytest.mark.parametrize("host", ELSEWHERE)
def test_any_other_address_needs_tls_and_a_way_to_know_callers(host: str) -> None:
    message = refusal(gateway={"host": host})
    assert "3 settings are wrong" in message
    for key, example in (
        ("gateway.tls.certificate", "/etc/personae/tls/tls.crt"),
        ("gateway.tls.private_key", "/etc/personae/tls/tls.key"),
        ("auth.jwt.issuer", "https://id.example.com/"),
    ):
        assert f"  {key} (PERSONAE_" in message
        assert f'example:  "{example}"' in message
    assert f"gateway.host ({host}) is not a loopback address" in message
    assert "auth.api_keys" in message


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("auth", [{"jwt": JWT}, {"api_keys": [API_KEY]}], ids=["jwt", "keys"])
def test_any_other_address_is_accepted_with_both(host: str, auth: dict[str, object]) -> None:
    assert load_settings(gateway={"host": host, "tls": TLS}, auth=auth).gateway.host == host
    assert "auth.jwt.issuer" in refusal(gateway={"host": host, "tls": TLS})
    assert "gateway.tls.certificate" in refusal(gateway={"host": host}, auth=auth)


def test_an_empty_address_is_none() -> None:
    assert "gateway.host" in refusal(gateway={"host": ""}, auth={"jwt": JWT})


@pytest.mark.parametrize(
    ("sections", "missing"),
    [
        ({"gateway": {"tls": {"certificate": "c"}}}, ["gateway.tls.private_key"]),
        ({"gateway": {"tls": {"private_key": "k"}}}, ["gateway.tls.certificate"]),
        ({"gateway": {"tls": {"client_ca": "k"}}}, ["gateway.tls.certificate", "gateway.tls.private_key"]),
        ({"gateway": {"tls": {**TLS, "require_client_certificate": True}}}, ["gateway.tls.client_ca"]),
        ({"auth": {"jwt": {"issuer": "i"}}}, ["auth.jwt.audience", "auth.jwt.jwks"]),
        ({"auth": {"jwt": {"jwks": "file.json", "audience": "a"}}}, ["auth.jwt.issuer"]),
    ],
    ids=str,
)
def test_half_of_tls_or_jwt_is_refused(sections: dict[str, object], missing: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(**sections)
    assert caught.value.metadata["keys"].split(",") == missing


def test_clients_must_show_a_certificate_if_there_is_an_authority_for_them_unless_told_otherwise() -> None:
    def asks(**tls: object) -> bool:
        return load_settings(gateway={"tls": {**TLS, **tls}}).gateway.tls.asks_clients

    assert not asks()
    assert asks(client_ca="ca.crt")
    assert not asks(client_ca="ca.crt", require_client_certificate=False)


@pytest.mark.parametrize(
    "jwks", ["http://id.example/jwks.json", "ftp://id.example/x", "https://", "file:///x", "http://"]
)
def test_signing_keys_are_not_read_in_the_clear(jwks: str) -> None:
    assert "auth.jwt.jwks" in refusal(auth={"jwt": {**JWT, "jwks": jwks}})


@pytest.mark.parametrize("jwks", ["https://id.example/jwks.json", "http://127.0.0.1:80/x", "keys/jwks.json", "~/j"])
def test_signing_keys_come_by_https_from_this_machine_or_from_a_file(jwks: str) -> None:
    assert load_settings(auth={"jwt": {**JWT, "jwks": jwks}}).auth.jwt.jwks == jwks


@pytest.mark.parametrize("algorithm", ["HS256", "none", "ES256K", ""])
def test_only_known_asymmetric_algorithms_are_accepted(algorithm: str) -> None:
    assert "auth.jwt.algorithm" in refusal(auth={"jwt": {**JWT, "algorithm": algorithm}})


def test_a_nested_section_in_the_environment_that_is_not_json_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_GATEWAY__TLS", "tls.crt")
    assert "gateway.tls (PERSONAE_GATEWAY__TLS)" in refusal()


def test_nested_settings_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_GATEWAY__TLS__CERTIFICATE", "a.crt")
    monkeypatch.setenv("PERSONAE_GATEWAY__TLS__PRIVATE_KEY", "a.key")
    assert load_settings(gateway={"port": 1}).gateway.tls.certificate == Path("a.crt")


@pytest.mark.parametrize("value", ["mysql://u:hunter2@h/d", "not-a-dsn-hunter2"])
def test_a_refused_secret_is_not_repeated(value: str) -> None:
    message = refusal(ledger={"dsn": value})
    assert "hunter2" not in message
    assert MASK in message


def test_a_secret_in_the_place_of_its_section_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAE_LEDGER", '"postgresql://u:hunter2@h/d"')
    assert "hunter2" not in refusal()


@given(st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_master_key_is_base64_of_exactly_32_bytes(raw: bytes) -> None:
    text = base64.b64encode(raw).decode()
    if len(raw) == 32:
        key = load_settings(ledger={"master_key": text}).ledger.master_key
        assert key is not None
        assert key.get_secret_value() == text
    else:
        assert "32 bytes" in refusal(ledger={"master_key": text})


def test_production_refuses_what_only_development_may_do() -> None:
    message = refusal(profile="production", engine={"kind": "synthetic"}, policy={"scorers": ()})
    for key in ("ledger.master_key", "engine.kind", "policy.scorers"):
        assert f"  {key} (" in message


def test_production_starts_with_a_master_key() -> None:
    assert load_settings(profile="production", ledger={"master_key": KEY}).profile == "production"


def test_two_api_keys_must_differ() -> None:
    key = {"id": "a", "sha256": "0" * 64, "tenant": "t"}
    assert "differ in `id`" in refusal(auth={"api_keys": [key, {**key, "sha256": "1" * 64}]})
    assert "differ in `sha256`" in refusal(auth={"api_keys": [key, {**key, "id": "b"}]})


def test_numbers_must_be_finite() -> None:
    assert "sessions.turn_timeout_s" in refusal(sessions={"turn_timeout_s": float("inf")})


def test_every_setting_is_documented_with_an_example() -> None:
    for row in describe():
        assert row.description.endswith("."), row.key
        assert row.example, row.key


def test_every_example_of_a_plain_setting_is_accepted() -> None:
    # What some need beside them.
    companions = {
        "engine": {"kind": "vllm"},
        "tls": {**TLS, "client_ca": "ca.crt"},
        "jwt": JWT,
        "provenance": TLS,
    }

    def check(model: type, *sections: str) -> None:
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation, *sections, name)
            elif name != "master_key" and field.examples:
                override = {**companions.get(sections[-1] if sections else "", {}), name: field.examples[0]}
                if override == {"profile": "production"}:
                    override["ledger"] = {"master_key": KEY}
                for section in reversed(sections):
                    override = {section: override}
                load_settings(**override)

    check(Settings)


def test_effective_settings_say_where_each_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "[gateway]\nport = 1\n[engine]\nparallel = 2\n")
    monkeypatch.setenv("PERSONAE_ENGINE__PARALLEL", "3")
    monkeypatch.setenv("PERSONAE_LEDGER__MASTER_KEY", KEY)
    shown = {s.row.key: (s.value, s.source) for s in effective_settings(path, memory={"dense": False})}
    assert shown["gateway.port"] == ("1", "file")
    assert shown["engine.parallel"] == ("3", "env")
    assert shown["memory.dense"] == ("false", "argument")
    assert shown["engine.kind"] == ('"llamacpp"', "default")
    assert shown["ledger.master_key"] == (MASK, "env")
    assert shown["ledger.dsn"] == ("unset", "default")


def test_the_committed_page_is_the_generated_one() -> None:
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == configuration_markdown(), "run `make docs`"


def test_only_llamacpp_bounds_the_places_of_an_engine() -> None:
    with pytest.raises(ConfigError, match=r"at most 256 with llama\.cpp"):
        load_settings(engine={"kind": "llamacpp", "parallel": 300})
    assert load_settings(engine={"kind": "synthetic", "parallel": 300}).engine.parallel == 300
