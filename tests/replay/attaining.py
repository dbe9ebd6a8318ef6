"""What a planner's curves say of a fleet that stays, and what replay attains: the cases of `test_curves` and of the benchmark
`tests.bench.attained`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from global_planner.compile import planner_setups_of
from global_planner.config import Topology
from global_planner.replay.contenders import objective
from global_planner.replay.needs import capacity_of, pool_loads, setups_by_pool
from global_planner.replay.simulator import simulate
from global_planner.replay.summary import summarise
from tests.replay.scenes import scenario, steady, topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Poisson arrivals at `times` what the planners' model says that the fleet carries; `agg` replicas instead of prefill and
    decode. Prompts and answers are half to twice as long as `isl` and `osl`, evenly."""

    prefill: int = 0
    decode: int = 0
    agg: int = 0
    isl: int
    osl: int
    ttft_s: float
    times: float
    door: bool = True

    @property
    def fleet(self) -> str:
        return f"{self.agg} agg" if self.agg else f"{self.prefill}+{self.decode}"

    @property
    def counts(self) -> dict[str, int]:
        return {"m0-agg": self.agg} if self.agg else {"m0-prefill": self.prefill, "m0-decode": self.decode}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """`said`: by the curve with or without admission, as the case has a door or none."""

    said: float
    attained: float
    requests: int

    @property
    def error(self) -> float | None:
        """Relative to what was said; None where that is nothing."""
        return self.attained / self.said - 1.0 if self.said else None


def deployment(case: Case) -> Topology:
    """Minima and maxima hold the fleet; a request may wait twice its TTFT where no door knows better."""
    here = topology(budget=sum(case.counts.values()), agg=bool(case.agg))
    [group] = here.groups
    pools = tuple(
        pool.model_copy(update={"min_replicas": count, "max_replicas": count})
        for pool, count in zip(group.pools, case.counts.values(), strict=True)
    )
    group = group.model_copy(update={"pools": pools, "sla": group.sla.model_copy(update={"ttft_ms": 1e3 * case.ttft_s})})
    router = here.router.model_copy(update={"queue_deadline_s": 2.0 * case.ttft_s})
    return here.model_copy(update={"groups": (group,), "router": router})


def carried_rps(case: Case) -> float:
    """What the planners' model says that the fleet carries of such requests."""
    here, like_it = deployment(case), steady(rps=2.0, minutes=30, isl=case.isl, osl=case.osl, seed=99)
    setups = setups_by_pool(planner_setups_of(here, scenario(here, like_it).profiles))
    loads = pool_loads(here, like_it)
    rates = []
    for name, setup in setups.items():
        assert setup.engine is not None
        rates.append(capacity_of(setup.engine, loads[name].shape(), setup).rps[case.counts[name]])
    return min(rates)


def attain(case: Case, *, requests: float, minutes: tuple[float, float], seed: int = 1) -> Told:
    """Play `requests`, or for as many `minutes` (at least, at most)."""
    rps = case.times * carried_rps(case)
    workload = steady(
        rps=rps, minutes=max(minutes[0], min(minutes[1], requests / rps / 60.0)), isl=case.isl, osl=case.osl, seed=seed
    )
    play = scenario(deployment(case), workload, start=case.counts)
    outcome = simulate(play, replace(objective("goodput"), admission=case.door))
    curves = summarise(outcome, play.profiles, workload)["models"]["m0"]["curves"]  # type: ignore[index]
    said = curves["with_admission" if case.door else "without_admission"]
    return Told(said=said, attained=curves["attained"], requests=len(workload))
