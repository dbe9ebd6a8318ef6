"""What deploy/ uses of objects that the tests' API server is too old for or has not: written from their documentation, as
little as is used here. Everything else is refused, which finds misspelt fields."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def closed(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
ANY: Schema = {"type": "object"}
POD_TEMPLATE: Schema = closed(["spec"], metadata=ANY, spec={"type": "object", "required": ["containers"]})

PDB = closed(
    ["selector"], selector=ANY, maxUnavailable={"type": ["integer", "string"]}, minAvailable={"type": ["integer", "string"]}
)
SERVICE_MONITOR = closed(
    ["selector", "endpoints"],
    selector=ANY,
    endpoints={"type": "array", "items": closed(["port"], port=TEXT, path=TEXT, interval=TEXT)},
)
RAY_CLUSTER = closed(
    ["headGroupSpec"],
    rayVersion=TEXT,
    authOptions=closed(["mode"], mode={"enum": ["disabled", "token"]}),
    gcsFaultToleranceOptions=closed(
        ["redisAddress"],
        redisAddress=TEXT,
        redisPassword=closed([], value=TEXT, valueFrom=ANY),
        externalStorageNamespace=TEXT,
    ),
    headGroupSpec=closed(["rayStartParams", "template"], serviceType=TEXT, rayStartParams=TEXTS, template=POD_TEMPLATE),
    workerGroupSpecs={"type": "array"},
)
RAY_JOB = closed(
    ["entrypoint"],
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    clusterSelector=TEXTS,
    shutdownAfterJobFinishes=FLAG,
    backoffLimit={"type": "integer", "minimum": 0},
    submitterPodTemplate=POD_TEMPLATE,
)
SPECS: dict[tuple[str, str], Schema] = {
    ("policy/v1", "PodDisruptionBudget"): PDB,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): SERVICE_MONITOR,
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("ray.io/v1", "RayJob"): RAY_JOB,
}
