"""Tenants take turns: stories on a virtual clock, the bound that weighted fair queueing promises, and two API keys at a pool
with one place."""

from __future__ import annotations

import asyncio
from collections import Counter
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from router.admission import Admission, Refusal, Ticket
from router.limits import RateLimit
from tests.router.conftest import MODEL, StartEngine, StartRouter, until
from tests.router.engines import FakeEngine, Seen


def door(room: int = 1000, rate_rps: float | None = 1.0) -> Admission:
    own = {"m": (0, RateLimit(rate_rps=rate_rps, burst=1.0))}
    admission = Admission(own, room=room, starting_retry_after_s=7.0, now=0.0)
    admission.offer(ticket("nobody"), 0.0, True)  # the burst is used up
    return admission


def ticket(
    tenant: str | None, tokens: float = 100.0, weight: float = 1.0, priority: int = 0, deadline_s: float = 1e9
) -> Ticket:
    return Ticket(model="m", priority=priority, tokens=tokens, deadline_s=deadline_s, tenant=tenant, weight=weight)


def wait(admission: Admission, *tickets: Ticket, now: float = 0.0, usable: bool = True) -> None:
    for one in tickets:
        assert admission.offer(one, now, usable) == "waiting"


def served(admission: Admission, seconds: int, since: int = 0) -> list[str | None]:
    """Who comes in when one request may come in each second."""
    told: list[str | None] = []
    for second in range(since + 1, since + seconds + 1):
        told += [one.tenant for one in admission.pump(float(second), lambda _: True)[0]]
    return told


def test_a_flood_waits_for_itself() -> None:
    admission = door()
    wait(admission, *(ticket("flood") for _ in range(50)))
    assert served(admission, 3) == ["flood"] * 3
    # Somebody else comes, behind forty-seven: their turns alternate from now on.
    wait(admission, *(ticket("guest") for _ in range(3)), now=3.0)
    assert served(admission, 8, since=3) == ["flood", "guest", "flood", "guest", "flood", "guest", "flood", "flood"]


def test_shares_are_counted_in_tokens() -> None:
    admission = door()
    wait(admission, *(ticket("long", tokens=400.0) for _ in range(20)), *(ticket("short") for _ in range(20)))
    assert Counter(served(admission, 20)) == {"long": 4, "short": 16}


def test_weights_are_proportions() -> None:
    admission = door()
    wait(admission, *(ticket("gold", weight=3.0) for _ in range(40)), *(ticket("basic") for _ in range(40)))
    assert Counter(served(admission, 40)) == {"gold": 30, "basic": 10}


def test_priority_comes_before_fairness() -> None:
    admission = door()
    wait(admission, *(ticket("a") for _ in range(2)), *(ticket("b", priority=5) for _ in range(3)))
    assert served(admission, 5) == ["b", "b", "b", "a", "a"]


def test_what_was_not_asked_for_is_not_saved_up() -> None:
    admission = door()
    wait(admission, ticket("idle"), *(ticket("busy") for _ in range(120)))
    assert served(admission, 100).count("idle") == 1
    wait(admission, *(ticket("idle") for _ in range(20)), now=100.0)
    assert Counter(served(admission, 10, since=100)) == {"idle": 5, "busy": 5}


def test_what_expires_costs_its_tenant_nothing() -> None:
    """Ten and two times what there is, each request for five seconds: both still get half."""
    admission = door()
    told: Counter[str | None] = Counter()
    for second in range(200):
        for tenant, count in (("ten", 10), ("two", 2)):
            for _ in range(count):
                admission.offer(ticket(tenant, deadline_s=second + 5.0), float(second), True)
        told += Counter(one.tenant for one in admission.pump(second + 0.999, lambda _: True)[0])
    assert 190 <= sum(told.values()) <= 200
    assert abs(told["ten"] - told["two"]) <= 6


def test_a_flood_gives_way_in_a_full_room() -> None:
    admission = door(room=4)
    flood = [ticket("flood") for _ in range(4)]
    wait(admission, *flood)
    assert isinstance(admission.offer(ticket("flood"), 0.0, True), Refusal)
    guests = [ticket("guest") for _ in range(2)]
    for one, victim in zip(guests, reversed(flood), strict=False):
        assert admission.offer(one, 0.0, True) == "waiting"
        assert [left for left, _ in admission.overflow()] == [victim]
    # Two each: nobody has more waiting than the newcomer's own tenant would.
    assert isinstance(admission.offer(ticket("guest"), 0.0, True), Refusal)
    assert served(admission, 4) == ["flood", "guest", "flood", "guest"]


def test_who_comes_back_is_not_charged_twice() -> None:
    """Let in, but somebody took the place: that is no turn."""
    admission = door(rate_rps=None)
    wait(admission, *(ticket("a") for _ in range(3)), *(ticket("b") for _ in range(3)), usable=False)
    order = []
    while admission.waiting("m"):
        admitted, _ = admission.pump(1.0, lambda _: True)
        order.append(admitted[0].tenant)
        wait(admission, *admitted[1:], now=1.0, usable=False)
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_places_are_given_once() -> None:
    admission = door(rate_rps=None)
    wait(admission, *(ticket(None) for _ in range(50)), usable=False)
    places = iter([True, True, False])
    admitted, _ = admission.pump(1.0, lambda _: True, lambda _: next(places, False))
    assert len(admitted) == 2 and len(admission.waiting("m")) == 48


@given(
    st.lists(st.floats(1.0, 1000.0), min_size=20, max_size=20),
    st.lists(st.floats(1.0, 1000.0), min_size=20, max_size=20),
    st.floats(0.1, 10.0),
)
def test_nobody_gets_ahead_by_more_than_a_request_each(ones: list[float], others: list[float], weight: float) -> None:
    """Goyal, Vin and Cheng's bound: while both wait, what two tenants got for their weights differs by at most the largest
    request of each."""
    admission = door()
    mine = [ticket("a", tokens=tokens, weight=weight) for tokens in ones]
    wait(admission, *mine, *(ticket("b", tokens=tokens) for tokens in others))
    got = {"a": 0.0, "b": 0.0}
    for second in range(1, 21):
        for one in admission.pump(float(second), lambda _: True)[0]:
            got[str(one.tenant)] += one.tokens / one.weight
        if {left.tenant for left in admission.waiting("m")} != {"a", "b"}:
            break
        assert abs(got["a"] - got["b"]) <= max(ones) / weight + max(others) + 1e-6


async def test_keys_take_turns_at_one_place(start_router: StartRouter, start_engine: StartEngine) -> None:
    begin = asyncio.Event()

    async def script(engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        await begin.wait()
        await engine.serve(seen, writer)

    engine = await start_engine(script=script)
    keys = [{"name": name, "sha256": sha256(name.encode()).hexdigest()} for name in ("flood", "guest")]
    pool = {"name": "a", "role": "agg", "endpoints": [engine.url], "max_in_flight": 1}
    router = await start_router([pool], keys=keys)
    order: list[str] = []

    async def ask(key: str) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 400}]}
        headers = {"authorization": f"Bearer {key}"}
        async with router.session.post(router.base + "/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status == 200
            await answer.read()
        order.append(key)

    waiting = [asyncio.ensure_future(ask("flood")) for _ in range(16)]
    await until(lambda: router.app.door.waiting == 15)
    told = await router.metrics()
    assert 'global_planner_router_key_waiting_requests{key="flood"} 15' in told
    assert 'global_planner_router_key_waiting_requests{key="guest"} 0' in told
    waiting += [asyncio.ensure_future(ask("guest")) for _ in range(4)]
    await until(lambda: router.app.door.waiting == 19)
    begin.set()
    await asyncio.gather(*waiting)
    # The guests came last and are through before the flood is half through.
    assert max(at for at, key in enumerate(order) if key == "guest") <= 9
    # Each place woke one request, not everybody who waits.
    assert engine.running == 0 and len(engine.calls) == 20
