"""The Kubernetes files: valid by their schemas, and of one piece."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from personae_runtime.config import Settings, load_settings
from personae_runtime.engines.shape import read_model_shape
from personae_runtime.errors import ConfigError
from personae_serve.deployments.fit import Hardware, Node, check
from tests.conftest import ROOT, run_python
from tests.unit.infra.models import write_models

KUBERNETES = ROOT / "infra" / "kubernetes"
BASE = [KUBERNETES / "base", KUBERNETES / "components" / "postgres", KUBERNETES / "components" / "qdrant"]
OVERLAYS = ("one-gpu", "region")
VERSION = "1.31"
SECRETS = {
    "personae": "environment: DSN, master key, API keys",
    "personae-gateway-tls": "certificate and key of the gateway",
    "personae-postgres": "password",
    "personae-qdrant": "API key",
}
"""Secrets that somebody makes; docs/deployment.md says how."""
CLAIMS = {"personae-models"}
"""Volume claims that somebody makes."""


def documents(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in files:
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            yield f"{file.name}: {document['kind']} {document['metadata']['name']}", document


def sources() -> list[Path]:
    """Files that hold resources as Kubernetes takes them: no kustomizations, patches or settings of theirs."""
    files = [file for folder in BASE for file in sorted(folder.glob("*.yaml"))]
    files.append(KUBERNETES / "overlays" / "region" / "network-policies.yaml")
    return [file for file in files if file.name not in ("kustomization.yaml", "rayservice-references.yaml")]


def rendered(overlay: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What `kubectl kustomize` makes of an overlay, which asks no cluster; by kind and name."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    command = [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    assert found
    return found


def pod_templates(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if resource["kind"] == "RayService":
        cluster = resource["spec"]["rayClusterConfig"]
        yield cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield group["template"]
    elif "template" in resource.get("spec", {}):
        yield resource["spec"]["template"]


def containers(template: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from template["spec"]["containers"]
    yield from template["spec"].get("initContainers", ())


def validate(resource: dict[str, Any]) -> None:
    """By the packaged schema; of a RayService, which that does not hold, every pod template as a pod."""
    if resource["kind"] != "RayService":
        kubernetes_validate.validate(resource, VERSION, strict=True)
        return
    for number, template in enumerate(pod_templates(resource)):
        metadata = {"name": f"pod-{number}", **template["metadata"]}
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, VERSION, strict=True
        )


@pytest.mark.parametrize(("name", "resource"), list(documents(sources())), ids=lambda value: str(value)[:60])
def test_core_kinds_are_valid_by_the_packaged_schema(name: str, resource: dict[str, Any]) -> None:
    validate(resource)


def test_the_schema_refuses_what_it_does_not_know() -> None:
    (resource,) = (one for name, one in documents([KUBERNETES / "base" / "gateway-service.yaml"]))
    resource["spec"]["selecter"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(resource)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_to_valid_resources(overlay: str) -> None:
    for resource in rendered(overlay).values():
        validate(resource)


def ray_service() -> dict[str, Any]:
    (resource,) = (one for _, one in documents([KUBERNETES / "base" / "rayservice.yaml"]))
    return resource


def test_the_serve_configuration_is_valid_by_rays_own_model() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(ray_service()["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "personae_serve.cluster:application"
    assert application.args == {"config": "/etc/personae/personae.toml"}


def test_every_node_has_what_the_application_sets_for_itself() -> None:
    pytest.importorskip("ray")
    script = """
import json, os
for name in [name for name in os.environ if name.startswith(("RAY_", "GRPC_"))]:
    del os.environ[name]
from personae_serve.cluster import application
assert callable(application)
print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(("RAY_SERVE_", "RAY_USAGE_", "GRPC_"))}))
"""
    needed = json.loads(run_python(script).splitlines()[-1])
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED" in needed
    kustomization = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text(encoding="utf-8"))
    (generator,) = kustomization["configMapGenerator"]
    literals = dict(line.split("=", 1) for line in generator["literals"])
    assert needed.items() <= literals.items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_ray_container_has_the_environment_and_the_configuration(overlay: str) -> None:
    resources = rendered(overlay)
    (service,) = (one for (kind, _), one in resources.items() if kind == "RayService")
    environment = next(name for kind, name in resources if kind == "ConfigMap" and name.startswith("personae-env-"))
    config = next(name for kind, name in resources if kind == "ConfigMap" and name.startswith("personae-config-"))
    for template in pod_templates(service):
        (container,) = template["spec"]["containers"]
        assert {"configMapRef": {"name": environment}} in container["envFrom"]
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert volumes["config"]["configMap"]["name"] == config
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["config"] == resources[("ConfigMap", environment)]["data"]["PERSONAE_CONFIG"]
        assert not container["image"].startswith("personae"), "the registry is yours to name"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_references_resolve(overlay: str) -> None:
    resources = rendered(overlay)
    secrets = set()
    for resource in resources.values():
        for template in pod_templates(resource):
            spec = template["spec"]
            if "serviceAccountName" in spec:
                assert ("ServiceAccount", spec["serviceAccountName"]) in resources
            claimed = {claim["metadata"]["name"] for claim in resource["spec"].get("volumeClaimTemplates", ())}
            volumes = {volume["name"] for volume in spec.get("volumes", ())} | claimed
            for volume in spec.get("volumes", ()):
                if "configMap" in volume:
                    assert ("ConfigMap", volume["configMap"]["name"]) in resources
                if "secret" in volume:
                    secrets.add(volume["secret"]["secretName"])
                if "persistentVolumeClaim" in volume:
                    claim = volume["persistentVolumeClaim"]["claimName"]
                    assert claim in CLAIMS or ("PersistentVolumeClaim", claim) in resources
            for container in containers(template):
                assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
                for source in container.get("envFrom", ()):
                    if "configMapRef" in source:
                        assert ("ConfigMap", source["configMapRef"]["name"]) in resources
                    else:
                        secrets.add(source["secretRef"]["name"])
                for variable in container.get("env", ()):
                    if "secretKeyRef" in variable.get("valueFrom", {}):
                        secrets.add(variable["valueFrom"]["secretKeyRef"]["name"])
    assert secrets <= SECRETS.keys()
    assert not any(kind == "Secret" for kind, _ in resources), "secrets are named here, never held"
    deployment = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    for secret in secrets:
        assert secret in deployment, f"docs/deployment.md does not say how to make the Secret {secret}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_policies_and_budgets_select_pods_and_ports_that_exist(overlay: str) -> None:
    resources = rendered(overlay)
    pods = [template for resource in resources.values() for template in pod_templates(resource)]

    def selected(labels: dict[str, str]) -> list[dict[str, Any]]:
        return [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]

    def ports(chosen: list[dict[str, Any]]) -> set[Any]:
        found = [port for pod in chosen for one in containers(pod) for port in one.get("ports", ())]
        return {port["name"] for port in found} | {port["containerPort"] for port in found}

    for (kind, name), resource in resources.items():
        spec = resource.get("spec", {})
        if kind == "Service":
            chosen = selected(spec["selector"])
            assert chosen, name
            assert {port["targetPort"] for port in spec["ports"]} <= ports(chosen), name
        elif kind == "PodDisruptionBudget":
            assert selected(spec["selector"]["matchLabels"]), name
        elif kind in ("Deployment", "StatefulSet"):
            assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
            if kind == "StatefulSet":
                assert ("Service", spec["serviceName"]) in resources
        elif kind == "NetworkPolicy":
            own = selected(spec["podSelector"].get("matchLabels", {}))
            assert own, name
            for rule in spec.get("ingress", ()):
                named = {port["port"] for port in rule.get("ports", ()) if isinstance(port["port"], str)}
                assert named <= ports(own), name
            for rule in spec.get("egress", ()):
                targets = [
                    pod
                    for peer in rule.get("to", ())
                    for pod in selected(peer.get("podSelector", {}).get("matchLabels", {"none": ""}))
                ]
                named = {port["port"] for port in rule.get("ports", ()) if isinstance(port["port"], str)}
                assert named <= ports(targets), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted_limited_and_probed(overlay: str) -> None:
    for (kind, name), resource in rendered(overlay).items():
        for template in pod_templates(resource):
            pod = template["spec"]["securityContext"]
            assert pod["runAsNonRoot"] is True, name
            assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
            for container in containers(template):
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False, name
                assert security["readOnlyRootFilesystem"] is True, name
                assert security["capabilities"] == {"drop": ["ALL"]}, name
                assert not security.get("privileged"), name
                assert "memory" in container["resources"]["limits"], name
                assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
                if kind != "RayService":  # KubeRay probes the raylets itself
                    assert {"readinessProbe", "livenessProbe"} <= container.keys(), name


def workers(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def overlay_settings(overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The overlay's personae.toml, with what comes from the Secret."""
    keys = [{"id": "backend-1", "sha256": "0" * 64, "tenant": "acme"}]
    monkeypatch.setenv("PERSONAE_LEDGER__DSN", "postgresql://personae@postgres/personae")
    monkeypatch.setenv("PERSONAE_LEDGER__MASTER_KEY", base64.b64encode(bytes(32)).decode())
    monkeypatch.setenv("PERSONAE_AUTH__API_KEYS", json.dumps(keys))
    file = KUBERNETES / "overlays" / overlay / "personae.toml"
    return load_settings(file)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_personae_toml_agrees_with_the_pods(
    overlay: str, tmp_path: Path, no_personae_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = overlay_settings(overlay, tmp_path, monkeypatch)
    resources = rendered(overlay)
    (service,) = (one for (kind, _), one in resources.items() if kind == "RayService")
    config = next(one for (kind, name), one in resources.items() if name.startswith("personae-config-"))
    assert tomllib.loads(config["data"]["personae.toml"])["profile"] == "production"
    assert settings.cluster.address == "auto"
    groups = workers(service)
    cpu = groups["cpu"]["template"]["spec"]
    (gateway,) = cpu["containers"]
    port = next(port["containerPort"] for port in gateway["ports"] if port["name"] == "grpc")
    assert settings.gateway.port == port == resources[("Service", "personae-gateway")]["spec"]["ports"][0]["port"]
    assert f"-addr=127.0.0.1:{port}" in gateway["readinessProbe"]["exec"]["command"]
    mounts = {mount["mountPath"] for mount in gateway["volumeMounts"]}
    assert str(settings.data_dir) in mounts
    assert str(settings.models_dir) in mounts
    for file in (settings.gateway.tls.certificate, settings.gateway.tls.private_key):
        assert file is not None
        assert str(file.parent) in mounts
    # Proofs of erasures outlive the pods, and all gateways write to the same file.
    assert settings.ledger.erasure_log is not None
    (log,) = (one for one in gateway["volumeMounts"] if one["mountPath"] == str(settings.ledger.erasure_log.parent))
    (volume,) = (one for one in cpu["volumes"] if one["name"] == log["name"])
    claim = resources[("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])]
    assert claim["spec"]["accessModes"] == (["ReadWriteMany"] if overlay == "region" else ["ReadWriteOnce"])
    assert not log.get("readOnly")
    endpoint = settings.telemetry.otlp_endpoint
    assert endpoint is not None
    host, _, otlp = endpoint.removeprefix("http://").partition(":")
    assert int(otlp) in {one["port"] for one in resources[("Service", host)]["spec"]["ports"]}


def test_a_cluster_in_production_is_refused_without_an_erasure_log(
    tmp_path: Path, no_personae_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay_settings("region", tmp_path, monkeypatch)
    lines = (KUBERNETES / "overlays" / "region" / "personae.toml").read_text(encoding="utf-8").splitlines()
    file = tmp_path / "personae.toml"
    file.write_text("\n".join(line for line in lines if not line.startswith("erasure_log")), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"ledger\.erasure_log"):
        load_settings(file)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_outlast_the_drain(
    overlay: str, tmp_path: Path, no_personae_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = overlay_settings(overlay, tmp_path, monkeypatch)
    (service,) = (one for (kind, _), one in rendered(overlay).items() if kind == "RayService")
    for name, group in workers(service).items():
        pod = group["template"]["spec"]
        leaving = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
        # The drain, and the time that ends of turns may wait for a ledger that is away.
        longest = settings.gateway.drain_grace_s + 60 if name == "cpu" else settings.sessions.turn_timeout_s + 30
        assert longest < leaving < pod["terminationGracePeriodSeconds"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_fits_the_nodes(
    overlay: str, tmp_path: Path, no_personae_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = overlay_settings(overlay, tmp_path, monkeypatch)
    (service,) = (one for (kind, _), one in rendered(overlay).items() if kind == "RayService")
    nodes: list[Node] = []
    for group in workers(service).values():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = int(limits.get("nvidia.com/gpu", 0))
        cpus = float(group["rayStartParams"].get("num-cpus", limits.get("cpu", 0)))
        memory = float(limits["memory"].removesuffix("Gi"))
        # The overlays are written for these GPUs.
        gpu_memory = {0: 0.0, 1: 45.0, 4: 79.6}[gpus]
        nodes += [Node(cpus, memory, gpus, gpu_memory)] * group["maxReplicas"]
    shapes = {path.name: read_model_shape(path) for path in write_models(tmp_path / "models").iterdir()}
    report = check(settings, Hardware("the overlay", tuple(nodes)), shapes=shapes)
    assert not report.errors, report.errors
    assert all(model.num_cpus == 0 for model in settings.model_deployments), "models ask for no processors"
    assert workers(service)["gpu"]["rayStartParams"]["num-cpus"] == "0", "and GPU nodes offer none"
