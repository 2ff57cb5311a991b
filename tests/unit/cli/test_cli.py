"""Commands that need no server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import personae_client
from personae_client import NotFoundError
from personae_runtime.errors import ConfigError
from personae_serve.cli import build_app
from personae_serve.cli.connection import connect
from personae_serve.cli.errors import explain
from tests.conftest import run_python
from tests.credentials import make_certificate
from tests.qdrant_server import Server

pytestmark = pytest.mark.usefixtures("no_personae_environment")


@pytest.fixture
def no_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process, whose logging is not theirs to set up."""
    monkeypatch.setattr("personae_runtime.telemetry.logs.setup_logging", lambda *_: None)


@pytest.fixture(scope="module")
def run() -> Callable[..., Result]:
    app = build_app()
    return lambda *arguments: CliRunner().invoke(app, [*arguments])


def test_help_lists_the_commands(run: Callable[..., Result]) -> None:
    shown = run("--help").output
    for command in ("chat", "config", "import", "models", "persona"):
        assert command in shown


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from personae_serve.cli import build_app; build_app();"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('grpc', 'google', 'numpy', 'onnxruntime', 'asyncpg', 'sqlalchemy', 'pydantic', 'qdrant_edge', 'cel')])"
    )
    assert run_python(script).strip() == "[]"


def test_config_show_prints_values_and_sources(run: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[gateway]\nport = 1234\n[ledger]\ndsn = "postgresql://u:hunter2@h/d"\n')
    done = run("config", "show", "--config", str(path), "--json")
    assert done.exit_code == 0
    assert '"value": "1234"' in done.output
    assert '"source": "file"' in done.output
    assert "hunter2" not in done.output
    assert "gateway.port" in run("config", "show").output


def test_config_check_accepts_the_defaults(run: Callable[..., Result]) -> None:
    done = run("config", "check")
    assert done.exit_code == 0
    assert "development" in done.output


def test_a_wrong_configuration_is_one_message_and_exit_code_1(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAE_GATEWAY__PORT", "x")
    done = run("config", "check")
    assert done.exit_code == 1
    assert "gateway.port (PERSONAE_GATEWAY__PORT" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("command", [("config", "check"), ("up",)], ids=" ".join)
def test_a_host_for_other_machines_without_tls_is_refused(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PERSONAE_GATEWAY__HOST", "0.0.0.0")
    monkeypatch.setenv("PERSONAE_DATA_DIR", str(tmp_path / "data"))
    done = run(*command)
    assert done.exit_code == 1
    for key in ("gateway.tls.certificate", "gateway.tls.private_key", "auth.jwt.issuer"):
        assert f"  {key} (PERSONAE_" in done.output
    assert not (tmp_path / "data").exists()


def test_config_check_reads_the_certificate(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate, key = make_certificate("server").write(tmp_path, "server")
    monkeypatch.setenv("PERSONAE_GATEWAY__TLS__CERTIFICATE", str(certificate))
    monkeypatch.setenv("PERSONAE_GATEWAY__TLS__PRIVATE_KEY", str(key))
    assert "The certificate holds until" in run("config", "check").output
    key.unlink()
    done = run("config", "check")
    assert done.exit_code == 1
    assert "gateway.tls.private_key" in done.output


async def test_options_choose_how_to_connect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERSONAE_DATA_DIR", str(tmp_path))
    ca, _ = make_certificate("ca", authority=True).write(tmp_path, "ca")
    certificate, key = make_certificate("client").write(tmp_path, "client")
    await connect("example.com:7400", "k", tls=True).close()
    await connect("example.com:7400", None, token="t", ca=ca, cert=certificate, key=key).close()
    for options, words in (
        ({"token": "t"}, "in the clear"),
        ({"ca": tmp_path / "absent"}, "absent can't be read: No such file"),
        ({"cert": certificate}, "both or none"),
        ({"api_key": "k", "token": "t"}, "not both"),
    ):
        with pytest.raises(typer.BadParameter, match=words):
            connect("example.com:7400", **{"api_key": None, **options})


async def test_a_host_that_listens_everywhere_is_reached_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PERSONAE_GATEWAY__HOST", "0.0.0.0")
    monkeypatch.setenv("PERSONAE_GATEWAY__TLS__CERTIFICATE", "server.crt")
    monkeypatch.setenv("PERSONAE_GATEWAY__TLS__PRIVATE_KEY", "server.key")
    monkeypatch.setenv("PERSONAE_AUTH__JWT", '{"issuer": "i", "audience": "a", "jwks": "j.json"}')
    given: list[tuple[str, object]] = []

    class Client:
        def __init__(self, target: str, **options: object) -> None:
            given.append((target, options["tls"]))

    monkeypatch.setattr(personae_client, "PersonaeClient", Client)
    connect(None, None, token="t")
    assert given == [("127.0.0.1:7400", personae_client.Tls())]


def test_wrong_usage_is_exit_code_2(run: Callable[..., Result]) -> None:
    assert run("chat").exit_code == 2
    assert run("models", "pull").exit_code == 2
    assert run("import", "chat", "/nonexistent", "--persona", "p", "--user", "u").exit_code == 2


def test_models_list_shows_what_is_missing(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run("models", "list", "--models-dir", str(tmp_path))
    assert done.exit_code == 0
    assert "not here" in done.output


def test_models_path_of_a_missing_file_names_the_command_that_gets_it(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    done = run("models", "path", "smollm2-135m-instruct", "--models-dir", str(tmp_path))
    assert done.exit_code == 1
    assert "personae models pull smollm2-135m-instruct" in done.output


def test_an_unknown_model_is_an_error_of_one_line(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run("models", "pull", "gpt-9", "--models-dir", str(tmp_path))
    assert done.exit_code == 1
    assert "gpt-9" in done.output


def test_a_key_is_never_sent_in_the_clear_to_another_machine(run: Callable[..., Result]) -> None:
    done = run("chat", "nadia", "--target", "example.com:443", "--api-key", "k")
    assert done.exit_code == 2
    assert "clear" in done.output


@pytest.mark.parametrize(
    "error",
    [ConfigError("words"), NotFoundError("words", code="NOT_FOUND"), ExceptionGroup("g", [ConfigError("words")])],
)
def test_deliberate_errors_are_explained(error: Exception) -> None:
    assert "words" in (explain(error) or "")


def test_a_fault_is_not_explained_away() -> None:
    assert explain(ValueError("words")) is None
    assert explain(typer.Abort()) is None


@pytest.mark.usefixtures("no_logging")
def test_memory_commands_lay_out_a_server_compare_and_migrate(
    run: Callable[..., Result], qdrant_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("DATA_DIR", str(tmp_path)),
        ("MEMORY__DENSE", "false"),
        ("MEMORY__QDRANT__URL", qdrant_server.url),
        ("MEMORY__QDRANT__COLLECTION", "of_the_cli"),
    ):
        monkeypatch.setenv(f"PERSONAE_{name}", value)
    missing = run("memory", "check")
    assert missing.exit_code == 1
    assert "personae memory init" in missing.output
    assert "Made of_the_cli_v2_1" in run("memory", "init").output
    assert "is there already" in run("memory", "init").output
    assert "laid out as wanted" in run("memory", "check").output

    monkeypatch.setenv("PERSONAE_MEMORY__QDRANT__PAYLOAD_M", "32")
    monkeypatch.setenv("PERSONAE_MEMORY__QDRANT__SHARD_NUMBER", "2")
    checked = run("memory", "check", "--json")
    assert checked.exit_code == 1
    indexes = json.loads(checked.output)["indexes"]
    assert [index["index"].split(" ")[0] for index in indexes] == ["of_the_cli", "of_the_cli_corpus"]
    for index in indexes:
        assert index["differences"] == [
            {"key": "shard_number", "wanted": 2, "found": 1},
            {"key": "hnsw.payload_m", "wanted": 32, "found": 16},
        ]
    assert "shard_number" in run("memory", "check").output
    migrated = run("memory", "migrate")
    assert migrated.exit_code == 0, migrated.output
    assert "0 changes indexed" in migrated.output
    assert "changes per second" in migrated.output
    assert run("memory", "check").exit_code == 0

    monkeypatch.setenv("PERSONAE_MEMORY__QDRANT__PAYLOAD_M", "16")
    assert "Changed in place: hnsw.payload_m." in run("memory", "migrate").output
    assert "laid out as wanted" in run("memory", "migrate").output


@pytest.mark.usefixtures("no_logging")
def test_memory_commands_on_the_embedded_index(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAE_DATA_DIR", str(tmp_path))
    assert "no preparation" in run("memory", "init").output
    checked = run("memory", "check", "--json")
    assert checked.exit_code == 1
    missing = [{"key": "layout", "wanted": "2", "found": None}]
    assert json.loads(checked.output) == {
        "indexes": [
            {"index": str(tmp_path / name), "differences": missing} for name in ("memory-index", "corpus-index")
        ]
    }
    for name in ("memory-index", "corpus-index"):
        assert run("memory", "check").exit_code == 1
        (tmp_path / name).mkdir()
        (tmp_path / name / "layout").write_text("2")
    assert run("memory", "check").exit_code == 0
