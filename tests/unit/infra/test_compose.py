"""What runs beside Personae on one machine, and the image."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from tests.conftest import ROOT

INFRA = ROOT / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text(encoding="utf-8"))
DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text(encoding="utf-8")


def images(text: str) -> set[str]:
    return set(re.findall(r"image: (\S+:\S+)", text))


def test_every_port_is_on_loopback() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["ports"], name
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"]), name


def test_files_and_volumes_that_are_mounted_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":", 1)[0]
            if source.startswith("."):
                assert (INFRA / "compose" / source).resolve().is_file(), source
            else:
                assert source in COMPOSE["volumes"]


def test_variables_stand_in_the_example_without_values() -> None:
    example = (INFRA / "compose" / ".env.example").read_text(encoding="utf-8")
    given = dict(line.split("=", 1) for line in example.splitlines() if "=" in line)
    text = (INFRA / "compose" / "compose.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+)", text)) == set(given)
    assert set(given.values()) == {""}


def test_prometheus_scrapes_where_the_collector_offers() -> None:
    prometheus = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    collector = yaml.safe_load((INFRA / "otel" / "collector.yaml").read_text(encoding="utf-8"))
    (job,) = prometheus["scrape_configs"]
    (target,) = (target for config in job["static_configs"] for target in config["targets"])
    host, _, port = target.partition(":")
    assert host in COMPOSE["services"]
    assert collector["exporters"]["prometheus"]["endpoint"].endswith(f":{port}")
    assert job["honor_labels"] is True, "else every process would be called as the collector is"
    assert prometheus["rule_files"] == ["rules.yml"]


def test_compose_and_kubernetes_run_the_same_versions() -> None:
    kubernetes = "".join(file.read_text(encoding="utf-8") for file in (INFRA / "kubernetes").rglob("*.yaml"))
    shared = {service["image"] for service in COMPOSE["services"].values()} - {"prom/prometheus:v3.5.0"}
    assert shared == images(kubernetes)


def test_the_image_runs_as_nobody_special_and_has_what_pods_call() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1] == "10001:10001"
    manifest = (INFRA / "kubernetes" / "base" / "rayservice.yaml").read_text(encoding="utf-8")
    assert "runAsUser: 10001" in manifest
    assert "grpc_health_probe" in manifest
    assert "/usr/local/bin/grpc_health_probe" in DOCKERFILE


def test_the_image_copies_what_it_needs_and_its_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"(?:EXTRAS|ENGINE)=([a-z,-]+)", DOCKERFILE):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys(), extras
    ignored = (INFRA / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source
