"""What KEDA and prometheus-adapter take: the fields of their own types, which Kubernetes' schemas don't hold.

By kedacore/keda: scaledobject_types.go and scaletriggers_types.go in apis/keda/v1alpha1, of which its CRD is generated,
and the scalers `prometheus` and `cpu` in pkg/scalers. By kubernetes-sigs/prometheus-adapter: pkg/config/config.go, and
its chart's values in prometheus-community/helm-charts. Names and types alone: of a query they know nothing.
KEDA's names were compared with the CRD of 2.20, as models made of it in a package have them (cloudcoil-models-keda).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Count = Annotated[int, Field(ge=0, lt=2**31)]


class _Kind(BaseModel):
    """Strict as an API server is: an unknown name is refused, and a number where a string belongs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)


class _Target(_Kind):
    name: str
    api_version: str = "apps/v1"
    kind: str = "Deployment"
    env_source_container_name: str = ""


class _Fallback(_Kind):
    failure_threshold: Count
    replicas: Count
    behavior: Literal[
        "static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower", "scalingModifiers"
    ] = "static"


class _Modifiers(_Kind):
    formula: str
    target: str
    activation_target: str = ""
    metric_type: Literal["AverageValue", "Value"] = "AverageValue"


class _Autoscaler(_Kind):
    """behavior: Kubernetes' own type"""

    name: str = ""
    behavior: dict[str, Any] = Field(default_factory=dict)


class _Advanced(_Kind):
    horizontal_pod_autoscaler_config: _Autoscaler = _Autoscaler()
    restore_to_original_replica_count: bool = False
    scaling_modifiers: _Modifiers | None = None


class _Authentication(_Kind):
    name: str
    kind: Literal["TriggerAuthentication", "ClusterTriggerAuthentication"] = "TriggerAuthentication"


@dataclass(frozen=True)
class _Scaler:
    """Names of a trigger's metadata that it needs and may have, and the kinds of metric that it makes."""

    needs: set[str]
    may: set[str]
    metrics: set[str]


_SCALERS = {
    "prometheus": _Scaler(
        needs={"serverAddress", "query", "threshold"},
        may={
            "activationThreshold", "authModes", "awsRegion", "customHeaders", "identityOwner", "ignoreNullValues",
            "namespace", "queryParameters", "timeout", "unsafeSsl",
        },
        metrics={"AverageValue", "Value"},
    ),
    "cpu": _Scaler(
        needs={"value"}, may={"activationValue", "containerName"}, metrics={"AverageValue", "Utilization"}
    ),
}  # fmt: skip


class _Trigger(_Kind):
    """Its metadata are strings, whatever they stand for."""

    type: str
    metadata: dict[str, str]
    name: str = ""
    metric_type: str = "AverageValue"
    use_cached_metrics: bool = False
    authentication_ref: _Authentication | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        scaler = _SCALERS.get(self.type)
        if scaler is None:
            raise ValueError(f"nothing is known here of the scaler {self.type}")
        unknown, missing = self.metadata.keys() - scaler.needs - scaler.may, scaler.needs - self.metadata.keys()
        if unknown or missing:
            raise ValueError(f"{self.type} doesn't know {sorted(unknown)}, and lacks {sorted(missing)}")
        if self.metric_type not in scaler.metrics:
            raise ValueError(f"{self.type} makes {sorted(scaler.metrics)}, not {self.metric_type}")
        for name in ("threshold", "activationThreshold", "value", "activationValue"):
            float(self.metadata.get(name, "0"))
        return self


class ScaledObjectSpec(_Kind):
    scale_target_ref: _Target
    triggers: Annotated[list[_Trigger], Field(min_length=1)]
    polling_interval: Count = 30
    initial_cooldown_period: Count = 0
    cooldown_period: Count = 300
    idle_replica_count: Count | None = None
    min_replica_count: Count = 0
    max_replica_count: Count = 100
    fallback: _Fallback | None = None
    advanced: _Advanced = _Advanced()

    @model_validator(mode="after")
    def _check(self) -> Self:
        """What KEDA's admission asks beside the types."""
        if self.min_replica_count > self.max_replica_count:
            raise ValueError(f"{self.min_replica_count} replicas at least, and {self.max_replica_count} at most")
        if self.idle_replica_count is not None and self.idle_replica_count >= self.min_replica_count:
            raise ValueError(f"{self.idle_replica_count} when idle are not fewer than {self.min_replica_count}")
        if self.fallback and all(trigger.type == "cpu" for trigger in self.triggers):
            raise ValueError("no trigger can fail, and so none can fall back")
        return self

    def autoscaler(self) -> dict[str, Any]:
        """The HorizontalPodAutoscaler that KEDA makes of it, without the metrics."""
        target = {"apiVersion": self.scale_target_ref.api_version, "kind": self.scale_target_ref.kind}
        config = self.advanced.horizontal_pod_autoscaler_config
        return {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": config.name or f"keda-hpa-{self.scale_target_ref.name}"},
            "spec": {
                "scaleTargetRef": {**target, "name": self.scale_target_ref.name},
                "minReplicas": self.min_replica_count or 1,
                "maxReplicas": self.max_replica_count,
                "behavior": config.behavior,
            },
        }


class _Filter(_Kind):
    is_: Annotated[str, Field(alias="is")] = ""
    is_not: str = ""


class _Resource(_Kind):
    resource: str
    group: str = ""


class _Resources(_Kind):
    template: str = ""
    overrides: dict[str, _Resource] = Field(default_factory=dict)


class _Name(_Kind):
    matches: str = ""
    as_: Annotated[str, Field(alias="as")] = ""


class _Replacement(_Kind):
    find: str = ""
    replace: str = ""


class _Rule(_Kind):
    series_query: str
    resources: _Resources
    metrics_query: str
    series_filters: list[_Filter] = Field(default_factory=list[_Filter])
    name: _Name = _Name()
    label_value_replacements: list[_Replacement] = Field(default_factory=list[_Replacement])


class _Rules(_Kind):
    """resource: of processors and memory, which nothing here sets"""

    default: bool = True
    custom: list[_Rule] = Field(default_factory=list[_Rule])
    existing: str | None = None
    external: list[_Rule] = Field(default_factory=list[_Rule])
    resource: dict[str, Any] = Field(default_factory=dict[str, Any])


class AdapterValues(_Kind):
    """Of the chart's values the one that is set here."""

    rules: _Rules
