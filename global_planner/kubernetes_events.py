"""[I/O] What was done to a DGD, as Kubernetes Events on it, so that `kubectl describe` tells what the planner did and why.

A few at once for each DGD and then one every half minute: whoever wants everything reads the journal. Events are sent beside
the rounds, which never wait for them; one that cannot be sent is counted and not tried again, and why is told now and then.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from global_planner.types import Cancel, Drain, Grow, PoolSpec, Round, Shrink, Step, Undrain
from pool_planner.connectors.component_state import DgdObject
from pool_planner.connectors.dgd import GROUP
from pool_planner.connectors.dgd_write import Request
from pool_planner.connectors.kubernetes_api import KubernetesApi
from pool_planner.types import WorldError

BURST = 6.0
PER_S = 1.0 / 30.0
QUEUE = 500
TELL_AGAIN_S = 300.0
"""So long nothing more is said of Events that could not be sent."""
DEADLINE_S = 5.0
COMPONENT = "global-planner"


@dataclass(slots=True)
class Bucket:
    """Events that one DGD may still get: `tokens` as of `at_s`."""

    tokens: float
    at_s: float

    def take(self, now_s: float) -> bool:
        self.tokens = min(BURST, self.tokens + (now_s - self.at_s) * PER_S)
        self.at_s = now_s
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def told(step: Step, round_no: int) -> tuple[str, str]:
    """(reason, message) of a step that was applied, as an Event has them."""
    if isinstance(step, Grow | Shrink | Cancel):
        verb = {Grow: "ScaledUp", Shrink: "ScaledDown", Cancel: "StartCancelled"}[type(step)]
        return verb, f"{step.pool}: {step.before} -> {step.after} replicas (round {round_no}): {step.reason}"
    kind = "Draining" if isinstance(step, Drain) else "DrainEnded"
    return kind, f"{step.pool}: {', '.join(step.replicas)} (round {round_no}): {step.reason}"


def event_body(found: DgdObject, reason: str, message: str, *, number: int, at_unix_s: float) -> Mapping[str, Any]:
    dgd = found.dgd
    stamp = datetime.fromtimestamp(at_unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{found.name}.{int(at_unix_s * 1000):x}.{number:x}", "namespace": found.namespace},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{dgd.api_version if dgd is not None else 'v1alpha1'}",
            "kind": "DynamoGraphDeployment",
            "name": found.name,
            "namespace": found.namespace,
            **({"uid": dgd.uid, "resourceVersion": dgd.version} if dgd is not None else {}),
        },
        "reason": reason,
        "message": message[:1024],
        "type": "Warning" if reason == "StartCancelled" else "Normal",
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


class EventTeller:
    """Sends the Events of rounds from a thread of its own. `unix_now` gives the wall clock. `log` is told of failures, once
    every five minutes. `failed`: the last failure."""

    def __init__(
        self,
        api: KubernetesApi,
        find: Callable[[str, str], DgdObject | None],
        pools: tuple[PoolSpec, ...],
        *,
        unix_now: Callable[[], float],
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._api, self._find, self._unix_now, self._log = api, find, unix_now, log
        self._places = {pool.name: (pool.namespace, pool.dgd) for pool in pools}
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._waiting: queue.Queue[tuple[str, Mapping[str, Any]] | None] = queue.Queue(QUEUE)
        self._number = 0
        self._told_at = -TELL_AGAIN_S
        self._untold = 0
        self.left_out = 0
        self.sent = 0
        self.failed: str | None = None
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def tell(self, done: Round) -> None:
        """The steps of a round that were applied (drains that were only announced again are none)."""
        now_s = self._unix_now()
        for outcome in done.outcomes:
            step = outcome.step
            place = self._places.get(step.pool)
            if not outcome.applied or place is None or _again(step):
                continue
            found = self._find(*place)
            if found is None:
                continue
            if not self._buckets.setdefault(place, Bucket(BURST, now_s)).take(now_s):
                self.left_out += 1
                continue
            reason, message = told(step, done.inputs.round_no)
            self._number += 1
            body = event_body(found, reason, message, number=self._number, at_unix_s=now_s)
            try:
                self._waiting.put_nowait((found.namespace, body))
            except queue.Full:
                self.left_out += 1

    def close(self, timeout_s: float = 2.0) -> None:
        self._waiting.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            namespace, body = item
            request = Request(
                method="POST",
                path=f"/api/v1/namespaces/{namespace}/events",
                content_type="application/json",
                body=body,
                verb="create",
                resource="events",
                namespace=namespace,
            )
            try:
                self._api.send(request, manager=COMPONENT, deadline_s=DEADLINE_S)
                self.sent += 1
            except WorldError as error:
                self.left_out += 1
                self._untold += 1
                self.failed = str(error)
                if time.monotonic() - self._told_at >= TELL_AGAIN_S:
                    self._log(f"{self._untold} Kubernetes Events could not be sent, the last one: {error}")
                    self._told_at, self._untold = time.monotonic(), 0


def _again(step: Step) -> bool:
    """A step that changes nothing anybody would want to read of: the same drain again, or a settled order."""
    if isinstance(step, Drain | Undrain):
        return step.reason.startswith("not acknowledged")
    return step.after == step.before
