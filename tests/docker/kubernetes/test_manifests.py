"""The manifests say what Kubernetes understands, and name what is there."""

import copy
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
from pydantic import ValidationError

from .foreign import AdapterValues, ScaledObjectSpec
from .manifests import FOLDER, RUNTIME, Document, containers_of, everything, only, pods_of, read, rendered

# The oldest and the newest Kubernetes that all of it is held to.
OLDEST, NEWEST = "1.31", "1.37"
# Of another project, whose schema doesn't come with Kubernetes'. `make lint-deploy` looks at KServe's two.
FOREIGN = {"ScaledObject"}
ADAPTER = FOLDER / "components" / "autoscaled" / "prometheus-adapter.yaml"


def validate(document: Document, version: str = NEWEST) -> None:
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_schema(version: str) -> None:
    documents = [document for _, found in everything() for document in found if document["kind"] not in FOREIGN]
    assert len(documents) > 50
    for document in documents:
        validate(document, version)
    # KServe makes pods of it.
    runtime = read(RUNTIME)["spec"]
    pod = {"containers": runtime["containers"], "volumes": runtime["volumes"]}
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": pod}, version)


def _misspell(pod: Document) -> None:
    probe = pod["containers"][0]["readinessProbe"]
    probe["failureTreshold"] = probe.pop("failureThreshold")


def _mistype(pod: Document) -> None:
    pod["terminationGracePeriodSeconds"] = "45 seconds"


@pytest.mark.parametrize("spoil", [_misspell, _mistype])
def test_the_schema_decides(spoil: Callable[[Document], None]) -> None:
    document = copy.deepcopy(only(rendered()["cpu"], "Deployment"))
    validate(document)
    spoil(document["spec"]["template"]["spec"])
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(document)


def scaled_object() -> Document:
    return copy.deepcopy(only(rendered()["autoscaled-by-keda"], "ScaledObject"))


def test_keda_knows_what_its_object_says() -> None:
    """And Kubernetes what KEDA makes of it."""
    document = scaled_object()
    assert document.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert document["apiVersion"] == "keda.sh/v1alpha1"
    found = ScaledObjectSpec.model_validate(document["spec"])
    for version in (OLDEST, NEWEST):
        validate(found.autoscaler(), version)
    assert found.autoscaler()["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_the_adapter_knows_what_its_values_say() -> None:
    AdapterValues.model_validate(read(ADAPTER))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("maxReplicas", 8),
        ("minReplicaCount", "2"),
        ("minReplicaCount", 9),
        ("idleReplicaCount", 2),
        ("fallback.behaviour", "static"),
        ("fallback.behavior", "currentReplicasIfMore"),
        ("triggers.0.metadata.threshold", 0.05),
        ("triggers.0.metadata.threshold", "50ms"),
        ("triggers.0.metadata.metricName", "queue"),
        ("triggers.0.metricType", "Utilization"),
        ("triggers.0.type", "prometeus"),
        ("triggers.1.metricType", "Value"),
    ],
)
def test_kedas_types_decide(path: str, value: object) -> None:
    document = scaled_object()
    _set(document["spec"], path, value)
    with pytest.raises(ValidationError):
        ScaledObjectSpec.model_validate(document["spec"])


@pytest.mark.parametrize(
    ("path", "value"),
    [("rules.costum", []), ("rules.custom.0.name.at", "queue"), ("rules.custom.0.seriesQuery", None)],
)
def test_the_adapters_types_decide(path: str, value: object) -> None:
    values = read(ADAPTER)
    _set(values, path, value)
    with pytest.raises(ValidationError):
        AdapterValues.model_validate(values)


def _set(document: Any, path: str, value: object) -> None:
    """path: names, and numbers of what stands in a list"""
    *way, last = path.split(".")
    for step in way:
        document = document[int(step) if step.isdigit() else step]
    document[last] = value


def test_what_is_named_is_there() -> None:
    for name, documents in rendered().items():
        deployment = only(documents, "Deployment")
        (pod,) = pods_of(documents)
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        ports = {port["name"] for port in pod["containers"][0]["ports"]}
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for one in containers_of(pod) for mount in one["volumeMounts"]} == volumes, name
        claims = {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]} - {None}
        assert claims == {one["metadata"]["name"] for one in documents if one["kind"] == "PersistentVolumeClaim"}
        assert pod["serviceAccountName"] == only(documents, "ServiceAccount")["metadata"]["name"]
        selectors = [deployment["spec"]["selector"]]
        selectors += [constraint["labelSelector"] for constraint in pod["topologySpreadConstraints"]]
        for document in documents:
            spec = document.get("spec", {})
            match document["kind"]:
                case "Service":
                    selectors.append({"matchLabels": spec["selector"]})
                    assert {port["targetPort"] for port in spec["ports"]} <= ports
                case "PodDisruptionBudget":
                    selectors.append(spec["selector"])
                case "NetworkPolicy":
                    selectors.append(spec["podSelector"])
                    assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} <= ports
                case "HorizontalPodAutoscaler" | "ScaledObject":
                    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
                    assert "replicas" not in deployment["spec"], "which it would take for its own"
                case _:
                    pass
        assert all(selector["matchLabels"].items() <= labels for selector in selectors), name
        placed = [one["metadata"].get("namespace") for one in documents if one["kind"] != "Namespace"]
        assert set(placed) == {only(documents, "Namespace")["metadata"]["name"]}, name


def test_pods_may_do_nothing_but_serve() -> None:
    """As Kubernetes' own profile `restricted` asks, and further."""
    pods = [pod for _, documents in everything() for pod in pods_of(documents)]
    assert len(pods) == len(rendered()) + 1
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        shared = pod["securityContext"]
        assert (shared["runAsNonRoot"], shared["runAsUser"]) == (True, 65532)
        assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for container in [one for pod in (*pods, read(RUNTIME)["spec"]) for one in containers_of(pod)]:
        own = container["securityContext"]
        assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys() >= {"cpu", "memory"}


def test_who_reaches_whom() -> None:
    """Servers reach nothing, but where one fetches its models; all may come in where a server asks for tokens alone."""
    for name, documents in rendered().items():
        policy = only(documents, "NetworkPolicy")["spec"]
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        assert bool(policy["egress"]) == (name == "models-from-bucket")
        open_ports = [port["port"] for rule in policy["ingress"] if not rule.get("from") for port in rule["ports"]]
        assert open_ports == (["grpc"] if name == "edge" else []), name


def test_the_autoscaler_asks_for_what_the_adapter_makes() -> None:
    """tests/serve/server/test_monitoring.py looks that a server has what the adapter and KEDA read."""
    (rule,) = read(ADAPTER)["rules"]["custom"]
    assert rule["seriesQuery"].startswith(rule["name"]["matches"])
    kinds: dict[str, list[str]] = {}
    for name in ("cpu", "gpu"):
        metrics = only(rendered()[name], "HorizontalPodAutoscaler")["spec"]["metrics"]
        (asked,) = [metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"]
        assert asked == rule["name"]["as"]
        kinds[name] = [metric["type"] for metric in metrics]
    assert kinds == {"cpu": ["Pods", "Resource"], "gpu": ["Pods"]}
    # Two autoscalers of one Deployment would undo each other's work.
    scalers = {"HorizontalPodAutoscaler", "ScaledObject"}
    assert all(sum(one["kind"] in scalers for one in documents) <= 1 for documents in rendered().values())


def test_kserve_puts_models_where_the_server_looks() -> None:
    service, runtime = read(FOLDER / "kserve" / "service.yaml"), read(RUNTIME)
    predictor = service["spec"]["predictor"]
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert predictor["model"]["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert predictor["model"]["modelFormat"]["name"] in {
        one["name"] for one in runtime["spec"]["supportedModelFormats"]
    }
    _, repository = runtime["spec"]["containers"][0]["args"]
    assert repository == "/mnt/models"
    (storage,) = predictor["storageUris"]
    name = storage["uri"].rpartition("/")[2]
    assert storage["mountPath"] == f"{repository}/{name}"
