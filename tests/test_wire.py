"""The codec: every record comes back as it was, and what is no record is refused with the place where it is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from global_planner import types as arbiter_types
from global_planner.types import ArbiterSnapshot, Grow, Override, Round, Shrink
from pool_planner import types as planner_types
from pool_planner import wire
from pool_planner.types import DemandCurve, Grant, GrantBatch, Hold, PlannerStatus, Proposal, Report, ReportBatch
from pool_planner.wire import MAX_MESSAGE_BYTES, SCHEMA_VERSION, WireError

wire.register_module(arbiter_types)

# What can be sent. Text without lone surrogates: msgpack text is UTF-8.
PLAIN: dict[object, st.SearchStrategy[Any]] = {
    float: st.floats(allow_nan=False, allow_infinity=False),
    int: st.integers(-(2**63), 2**63 - 1),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    bool: st.booleans(),
    type(None): st.none(),
}


@functools.cache
def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type, small: at most two of everything that can be many."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return st.builds(kind, **{name: values_of(hint) for name, hint in get_type_hints(kind).items()})
    if origin is Literal:
        return st.sampled_from(inside)
    if origin in (Union, types.UnionType):
        return st.one_of(*map(values_of, inside))
    if origin is Mapping:
        return st.dictionaries(*map(values_of, inside), max_size=2)
    if origin is tuple and inside[-1] is Ellipsis:
        return st.lists(values_of(inside[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, inside))
    raise TypeError(f"no values of {kind}")


RECORDS = [
    record
    for module in (planner_types, arbiter_types)
    for record in vars(module).values()
    if isinstance(record, type) and dataclasses.is_dataclass(record) and record.__module__ == module.__name__
]


# ---- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_record_comes_back_as_it_was(record: type) -> None:
    """Types decide it: int stays int, tuples come back as tuples, and a union finds its member again."""

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(value=values_of(record))
    def comes_back(value: Any) -> None:
        message = wire.encode(value)
        back = wire.decode(message, expect=record)
        assert back == value
        assert type(back) is record
        assert wire.encode(back) == message

    comes_back()


def test_members_of_a_union_are_told_apart() -> None:
    """A Hold and a Proposal, and steps with the same fields, come back as what they were."""
    hold = Hold(pool="p", at_s=1.0, reason="no answer", expires_at_s=2.0)
    proposal = Proposal(pool="p", at_s=1.0, expires_at_s=2.0, load_rps=0.0, wanted=0)
    batch = ReportBatch(dgd="d", pid=1, started_at_s=0.0, reports=(hold, proposal, hold))
    back: ReportBatch = wire.decode(wire.encode(batch))
    assert [type(report) for report in back.reports] == [Hold, Proposal, Hold]
    grow = Grow(pool="p", before=1, after=2, version=None, reason="")
    shrink = Shrink(pool="p", before=2, after=1, victims=(), version=None, reason="")
    round_ = _round(steps=(grow, shrink))
    assert [type(step) for step in wire.decode(wire.encode(round_)).steps] == [Grow, Shrink]


def test_unknown_is_not_zero() -> None:
    grant = wire.decode(wire.encode(Grant(pool="p", at_s=0.0)))
    assert grant.replicas_spec is None
    assert grant.granted is None


# ---- refusals of what comes in -------------------------------------------------------------------------------------------

PROPOSAL = Proposal(pool="p", at_s=1.0, expires_at_s=2.0, load_rps=1.5, wanted=2, curve=DemandCurve(attainment=(0.0, 0.5, 1.0)))


def envelope(record: object) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(wire.encode(record))
    return found


def changed(record: object, change: Callable[[dict[str, Any]], object]) -> bytes:
    whole = envelope(record)
    change(whole["d"])
    packed: bytes = msgpack.packb(whole)
    return packed


FIELDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda fields: fields.pop("wanted"), "Proposal.wanted: "),
    "unknown": (lambda fields: fields.update(extra=1), "Proposal.extra: "),
    "of another type": (lambda fields: fields.update(load_rps=[1.0]), "Proposal.load_rps: "),
    "no whole number": (lambda fields: fields.update(wanted=1.5), "Proposal.wanted: "),
    "nothing where something must be": (lambda fields: fields.update(pool=None), "Proposal.pool: "),
    "nan": (lambda fields: fields.update(load_rps=float("nan")), "Proposal.load_rps: "),
    "infinity": (lambda fields: fields.update(expires_at_s=float("inf")), "Proposal.expires_at_s: "),
    "deep inside": (lambda fields: fields["curve"]["attainment"].append("much"), "Proposal.curve.attainment.3: "),
    "nan deep inside": (lambda fields: fields["curve"]["attainment"].append(float("nan")), "Proposal.curve.attainment.3: "),
    "unknown deep inside": (lambda fields: fields["curve"].update(slope=1), "Proposal.curve.slope: "),
}


@pytest.mark.parametrize(("change", "where"), FIELDS.values(), ids=FIELDS)
def test_a_wrong_field_is_refused_by_its_path(change: Callable[[dict[str, Any]], object], where: str) -> None:
    with pytest.raises(WireError) as error:
        wire.decode(changed(PROPOSAL, change), expect=Proposal)
    assert str(error.value).startswith(where)


def test_the_number_of_problems_is_told() -> None:
    def two(fields: dict[str, Any]) -> None:
        fields.pop("wanted")
        fields["extra"] = 1

    with pytest.raises(WireError, match=r"2 problems in all"):
        wire.decode(changed(PROPOSAL, two))


BODY = envelope(PROPOSAL)
ENVELOPES: dict[str, tuple[object, str]] = {
    "of a later schema": ({**BODY, "v": SCHEMA_VERSION + 1}, f"schema version {SCHEMA_VERSION + 1}"),
    "of no schema": ({**BODY, "v": None}, "schema version None"),
    "of an unknown kind": ({**BODY, "k": "Wish"}, "unknown record kind 'Wish'"),
    "whose kind is no text": ({**BODY, "k": [1]}, "unknown record kind"),
    "without fields": ({"v": SCHEMA_VERSION, "k": "Proposal"}, "not an envelope"),
    "with more": ({**BODY, "x": 1}, "not an envelope"),
    "that is a list": ([1, 2, 3], "not an envelope"),
    "that is nothing": (None, "not an envelope"),
    "whose fields are a list": ({**BODY, "d": []}, "Proposal."),
}


@pytest.mark.parametrize(("body", "why"), ENVELOPES.values(), ids=ENVELOPES)
def test_an_envelope_is_refused(body: object, why: str) -> None:
    with pytest.raises(WireError, match=why):
        wire.decode(msgpack.packb(body))


def test_another_kind_than_expected_is_refused() -> None:
    message = wire.encode(PROPOSAL)
    with pytest.raises(WireError, match="expected GrantBatch, got Proposal"):
        wire.decode(message, expect=GrantBatch)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_noise_is_refused_and_never_raises_anything_else(noise: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode(noise)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_message_is_refused_or_still_a_record(data: st.DataObject) -> None:
    """One byte changed, or the end cut off: a WireError or a record of the kind asked for, nothing else."""
    message = bytearray(wire.encode(PROPOSAL))
    if data.draw(st.booleans()):
        del message[data.draw(st.integers(0, len(message) - 1)) :]
    else:
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        assert isinstance(wire.decode(bytes(message), expect=Proposal), Proposal)


def test_a_message_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(WireError, match=f"longer than {MAX_MESSAGE_BYTES}"):
        wire.decode(b"\x00" * (MAX_MESSAGE_BYTES + 1))


def test_two_values_under_one_key_do_not_pass() -> None:
    """Keys must be text, as ours are."""
    with pytest.raises(WireError):
        wire.decode(msgpack.packb({1: 2, "k": "Proposal", "d": {}}))


# ---- refusals of what goes out -------------------------------------------------------------------------------------------

UNSENDABLE = {
    "nan": (dataclasses.replace(PROPOSAL, load_rps=float("nan")), "Proposal.load_rps is nan"),
    "infinity": (dataclasses.replace(PROPOSAL, at_s=float("-inf")), "Proposal.at_s is -inf"),
    "inside": (
        dataclasses.replace(PROPOSAL, curve=DemandCurve(attainment=(0.0, float("nan")))),
        "Proposal.curve.attainment[1] is nan",
    ),
    "in a mapping": (PlannerStatus(pool="p", at_s=0.0, numbers={"x": float("inf")}), "PlannerStatus.numbers.x is inf"),
}


@pytest.mark.parametrize(("record", "why"), UNSENDABLE.values(), ids=UNSENDABLE)
def test_a_number_that_nobody_could_read_back_is_not_sent(record: object, why: str) -> None:
    with pytest.raises(WireError) as error:
        wire.encode(record)
    assert str(error.value).startswith(why)


def test_what_is_no_record_is_not_sent() -> None:
    for value in ({"pool": "p"}, "text", None, ValueError("x")):
        with pytest.raises(WireError, match="is not a registered record"):
            wire.encode(value)


# ---- the registry --------------------------------------------------------------------------------------------------------


def test_one_name_is_one_record() -> None:
    wire.register(Proposal)  # once more is harmless
    other = dataclasses.make_dataclass("Proposal", [("x", int)])
    with pytest.raises(ValueError, match="two records are named 'Proposal'"):
        wire.register(other)
    assert wire.decode(wire.encode(PROPOSAL)) == PROPOSAL


def test_a_record_can_be_encoded_only_once_it_is_registered() -> None:
    record = dataclasses.make_dataclass("OnlyHere", [("x", int)], frozen=True, slots=True, kw_only=True)
    with pytest.raises(WireError):
        wire.encode(record(x=1))
    wire.strict(record)
    wire.register(record)
    assert wire.decode(wire.encode(record(x=1))).x == 1


def _round(**more: Any) -> Round:
    from global_planner.types import Allocation, Budget, RoundInputs

    inputs = RoundInputs(
        round_no=1, at_s=0.0, budget=Budget(max_gpus={"h100": 1}), groups=(), pools=(), holdings=(), reports=()
    )
    allocation = Allocation(pools=(), groups=(), objective="goodput", value=0.0, gap=0.0, solver="exact")
    return Round(**{"inputs": inputs, "allocation": allocation, "steps": (), "outcomes": (), "charged_gpus": {}, **more})


def test_the_snapshot_of_an_arbiter_carries_its_round() -> None:
    override = Override(pool="p", kind="pin", replicas=2, expires_at_s=None, by="ann", reason="test")
    done = _round()
    done = dataclasses.replace(done, inputs=dataclasses.replace(done.inputs, overrides=(override,)))
    snapshot = ArbiterSnapshot(pid=1, started_at_s=0.0, rounds=1, last_round=done, notes=((1.0, "hello"),))
    assert wire.decode(wire.encode(snapshot), expect=ArbiterSnapshot) == snapshot
    assert isinstance(snapshot.last_round, Round)
    assert Report == Proposal | Hold
