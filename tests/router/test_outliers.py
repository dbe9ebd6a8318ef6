"""A replica that is far slower than its siblings is left alone: stories on a virtual clock, the bound on how many, and a slow
engine behind real sockets."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import ConfigError, OutlierConfig, validate
from router.outliers import Outliers, Verdict
from tests.router.conftest import StartEngine, StartRouter, until

CONFIG = OutlierConfig()


class Pool:
    """Endpoints that answer once a second each, at the speed that a test says."""

    def __init__(self, count: int, config: OutlierConfig = CONFIG) -> None:
        self.outliers = Outliers(config)
        self.itl = {f"e{i}": 0.02 for i in range(count)}
        self.now = 0.0
        self.told: list[tuple[float, str, str]] = []
        self.outliers.present(self.itl)

    def _hear(self, verdicts: list[Verdict]) -> None:
        self.told += [(self.now, one.endpoint, one.action) for one in verdicts]

    def run(self, seconds: int, rng: random.Random | None = None) -> list[tuple[float, str, str]]:
        """What was decided in the next seconds."""
        before = len(self.told)
        for _ in range(seconds):
            self.now += 1.0
            self.outliers.expired(self.now)
            for name, itl in self.itl.items():
                if name not in self.outliers.out or self.outliers.on_trial(name):
                    noise = rng.lognormvariate(0.0, 0.4) if rng else 1.0
                    self._hear(self.outliers.record(name, self.now, itl=itl * noise))
        return self.told[before:]


def test_a_slow_replica_goes_comes_back_and_goes_for_longer() -> None:
    pool = Pool(4)
    assert pool.run(60) == []
    pool.itl["e2"] = 0.2
    # Five of the last ten answers make the median; then it must last for twenty seconds.
    [(at, name, action)] = pool.run(40)
    assert (name, action) == ("e2", "eject") and 84.0 <= at <= 90.0
    # Away for half a minute; five answers on trial say that it is slow still: away for a minute, and so on.
    assert [(name, action) for _, name, action in pool.run(30)] == [("e2", "eject")]
    again, first = pool.told[-1][0], pool.told[-2][0]
    assert 30.0 <= again - first <= 37.0
    pool.run(70)
    assert 60.0 <= pool.told[-1][0] - again <= 67.0
    # Whoever is well again comes back after its next trial, and is as good as any.
    pool.itl["e2"] = 0.02
    assert [(name, action) for _, name, action in pool.run(130)] == [("e2", "restore")]
    assert pool.run(200) == []


def test_a_short_stutter_is_forgiven() -> None:
    pool = Pool(4)
    pool.run(30)
    pool.itl["e1"] = 0.2
    assert pool.run(18) == []
    pool.itl["e1"] = 0.02
    assert pool.run(60) == []


@pytest.mark.parametrize(
    ("slow", "itl", "why"),
    [
        (["e1"], 0.055, "less than three times as slow"),
        (["e1", "e2", "e3", "e4", "e5"], 0.2, "everybody is slow, so nobody is an outlier"),
    ],
)
def test_nobody_is_ejected(slow: list[str], itl: float, why: str) -> None:
    pool = Pool(6)
    pool.itl.update(dict.fromkeys(slow, itl))
    assert pool.run(120) == [], why


def test_a_difference_that_nobody_notices_is_none() -> None:
    pool = Pool(6)
    pool.itl = dict.fromkeys(pool.itl, 0.001)
    pool.itl["e1"] = 0.009
    assert pool.run(120) == []


def test_a_pool_of_two_keeps_both() -> None:
    pool = Pool(2)
    pool.itl["e1"] = 1.0
    assert pool.run(120) == []


def test_whole_share_and_not_more() -> None:
    """Four of ten are slow; a third of ten is three."""
    pool = Pool(10)
    pool.itl.update(dict.fromkeys(["e0", "e1", "e2", "e3"], 0.5))
    pool.run(45)
    assert len(pool.outliers.out) == 3
    # The pool shrinks to five, of which one may be away: those that have been away longest come back.
    for gone in ("e5", "e6", "e7", "e8", "e9"):
        del pool.itl[gone]
    restored = pool.outliers.present(pool.itl)
    assert [one.action for one in restored] == ["restore", "restore"]
    assert len(pool.outliers.out) == 1


def test_the_first_tokens_time_counts_too() -> None:
    outliers = Outliers(CONFIG)
    outliers.present(["a", "b", "c"])
    verdicts = []
    for second in range(60):
        for name, ttft in (("a", 0.1), ("b", 0.11), ("c", 0.9)):
            verdicts += outliers.record(name, float(second), ttft=ttft)
    assert [(one.endpoint, one.signal, one.own, one.siblings) for one in verdicts[:1]] == [
        ("c", "ttft", 0.9, pytest.approx(0.105))
    ]


@given(st.integers(1, 12), st.integers(0, 2**32), st.sampled_from([0.1, 1 / 3, 0.5]))
def test_never_more_than_the_share(count: int, seed: int, share: float) -> None:
    rng = random.Random(seed)
    pool = Pool(count, OutlierConfig(max_share=share, for_s=3.0, eject_s=5.0, samples=4))
    for _ in range(12):
        name = rng.choice(sorted(pool.itl))
        pool.itl[name] = rng.choice([0.02, 0.02, 0.5])
        pool.run(rng.randrange(1, 12), rng)
        if rng.random() < 0.2 and len(pool.itl) > 1:
            del pool.itl[rng.choice(sorted(pool.itl))]
            pool.outliers.present(pool.itl)
        assert len(pool.outliers.out) <= share * len(pool.itl) + 1e-9


def test_noise_ejects_nobody() -> None:
    pool = Pool(6)
    assert pool.run(900, random.Random(1)) == []


def test_wrong_settings_are_told() -> None:
    models = [{"model": "m", "pools": [{"name": "a", "role": "agg"}]}]
    with pytest.raises(ConfigError, match=r"outliers: eject_max_s 5 is below eject_s 30"):
        validate({"models": models, "outliers": {"eject_max_s": 5}})
    with pytest.raises(ConfigError, match=r"outliers\.factor: .*greater than 1 \(got 0\.5\)"):
        validate({"models": models, "outliers": {"factor": 0.5}})


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_slow_engine_behind_sockets(start_router: StartRouter, start_engine: StartEngine, role: str) -> None:
    """One of three is slow for a while; the others get its work, one request at a time asks after it, and it comes back."""
    engines = [await start_engine(f"{role}{i}", role) for i in range(3)]
    other = await start_engine("other", "decode" if role == "prefill" else "prefill")
    slow = engines[1]
    slow.prefill_s, slow.itl_s = 0.1, 0.05
    pools = [
        {"name": role, "role": role, "endpoints": [one.url for one in engines], "pick": "round_robin"},
        {"name": "other", "role": other.role, "endpoints": [other.url]},
    ]
    # Ten model seconds are one here, so that a check is made ten times a second; latencies are ten times as long.
    outliers = {"samples": 3, "for_s": 1.0, "eject_s": 5.0}
    router = await start_router(pools, speed=10.0, outliers=outliers)
    said: list[str] = []
    router.app.endpoints._say = said.append

    async def ask(count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*(router.stream("hello " * 100) for _ in range(3)))

    def away() -> bool:
        return f"127.0.0.1:{slow.port}" in router.app.endpoints.pools[role].ejection.out

    for _ in range(20):
        await ask(2)
        if away():
            break
    assert away()
    assert f"127.0.0.1:{slow.port} takes" in said[0] and "it gets nothing for 5 s" in said[0]
    assert (await router.endpoint(f"127.0.0.1:{slow.port}"))["ejected"] is True
    metrics = await router.metrics()
    assert f'role="{role}"}} 1\n' in next(
        line + "\n" for line in metrics.splitlines() if "ejections_total{" in line and f'role="{role}"' in line
    )
    had = len(slow.calls)
    await ask(2)
    assert len(slow.calls) == had
    # It is well again; the next trial shows it.
    slow.prefill_s = slow.itl_s = 0.0
    for _ in range(50):
        await ask(1)
        if not away():
            break
        await asyncio.sleep(0.02)
    assert not away() and "as fast as its siblings" in said[-1]
    await until(lambda: slow.running == 0)
    await ask(2)
    assert len(slow.calls) > had + 2
