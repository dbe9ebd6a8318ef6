"""The one object that leaders share, as a Lease of coordination.k8s.io: who decides, until when, and what may grow. Pure.

The ledger stands in the lease itself. So a reservation is a write on the very version of the lease, and who lost the lease can
reserve nothing any more: the API server refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from global_planner.ports import Reservation

LEDGER = "global-planner.io/ledger"
LEDGER_VERSION = "global-planner.io/ledger-version"
WRITE_DEADLINE = "global-planner.io/write-deadline-s"


class NoLease(ValueError):
    """An object that is no lease of ours; the text says what of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """`holder` None: nobody. `write_deadline_s`: so long a write of the holder may still be under way when it has lost the
    lease. `transitions` counts the holders."""

    holder: str | None
    duration_s: float
    renewed: str
    transitions: int
    write_deadline_s: float
    ledger_version: int
    entries: tuple[Reservation, ...]
    version: str = ""


def read_lease(raw: Mapping[str, Any]) -> LeaseRecord:
    """Raises NoLease. A lease without a ledger has an empty one."""
    metadata, spec = raw.get("metadata") or {}, raw.get("spec") or {}
    notes = metadata.get("annotations") or {}
    try:
        entries = tuple(
            Reservation(pool=str(pool), replicas=int(replicas), version=None if version is None else str(version))
            for pool, replicas, version in json.loads(notes.get(LEDGER, "[]"))
        )
        return LeaseRecord(
            holder=spec.get("holderIdentity") or None,
            duration_s=float(spec.get("leaseDurationSeconds") or 0),
            renewed=str(spec.get("renewTime", "")),
            transitions=int(spec.get("leaseTransitions") or 0),
            write_deadline_s=float(notes.get(WRITE_DEADLINE, 0.0)),
            ledger_version=int(notes.get(LEDGER_VERSION, 0)),
            entries=entries,
            version=str(metadata.get("resourceVersion", "")),
        )
    except (TypeError, ValueError) as error:
        raise NoLease(f"lease {metadata.get('name')}: {error}") from error


def lease_body(
    name: str, namespace: str, record: LeaseRecord, *, now_unix_s: float, acquired: bool, before: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """The lease to write, bound to the record's version. `before`: as it was read (None: it is to be made)."""
    now = datetime.fromtimestamp(now_unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    old = {} if before is None else dict(before.get("spec") or {})
    metadata = {} if before is None else dict(before.get("metadata") or {})
    metadata.pop("managedFields", None)
    notes = dict(metadata.get("annotations") or {})
    notes[LEDGER] = ledger_text(record.entries)
    notes[LEDGER_VERSION] = str(record.ledger_version)
    notes[WRITE_DEADLINE] = f"{record.write_deadline_s:g}"
    spec = {
        **old,
        "holderIdentity": record.holder or "",
        "leaseDurationSeconds": max(1, round(record.duration_s)),
        "renewTime": now,
        "leaseTransitions": record.transitions,
    }
    if acquired:
        spec["acquireTime"] = now
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {**metadata, "name": name, "namespace": namespace, "annotations": notes},
        "spec": spec,
    }


def ledger_text(entries: Sequence[Reservation]) -> str:
    return json.dumps([[item.pool, item.replicas, item.version] for item in entries], separators=(",", ":"))
