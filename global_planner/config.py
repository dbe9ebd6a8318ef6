"""The topology: one file that describes a deployment, as frozen pydantic models. Pure: `topology_file` reads the file.

Budgets by GPU type and limits beside them, groups (one model each) with their pools, rules for many of them at once, the
cluster that they run in, the arbiter's rhythm and the router. All durations are model seconds. Where a value could stand
both here and in a pool's planner settings (SLA, minimum, GPU budget, mode), the topology wins; a contradiction is refused.
What no single section can know (names, minima against the budget, prompts without a pool) is checked in `topology_checks`
and `rule_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from global_planner.config_base import (
    Flag,
    ModelName,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Pattern,
    PoolMode,
    Port,
    PositiveFloat,
    PositiveInt,
    Section,
)
from global_planner.config_rules import OverrideConfig, ScheduleConfig, SelectorConfig
from global_planner.config_types import Moment
from pool_planner.connectors.writers import OPERATOR_MANAGERS
from pool_planner.types import Role


class GpuBudget(Section):
    """`max`: never charge more GPUs of this type than this (absent: unlimited). `min_total`: the fleet of this type is not
    shrunk below it; `surplus_pools` take, in this order, what of it nobody asks for. `price_per_hour` of one GPU, in any one
    currency."""

    max: PositiveInt | None = None
    min_total: NonNegativeInt = 0
    surplus_pools: tuple[Name, ...] = ()
    price_per_hour: NonNegativeFloat | None = None


class LimitConfig(Section):
    """A limit beside the budget, over the pools of a `namespace` (a name, or a pattern with `*`) and of a `gpu_type`; absent:
    all. Set either `max_gpus` (a quota) or `max_cost_per_hour` (by the prices of the budget). Whichever limit is tightest
    binds, and is named where it does."""

    name: Name
    namespace: Pattern | None = None
    gpu_type: str | None = None
    max_gpus: PositiveInt | None = None
    max_cost_per_hour: PositiveFloat | None = None


class BudgetConfig(Section):
    """The GPUs that all pools share. A replica is started only where the budget of its type and every limit allow it."""

    gpus: dict[str, GpuBudget] = Field(min_length=1)
    limits: tuple[LimitConfig, ...] = ()


class KubernetesConfig(Section):
    """How a Kubernetes cluster is reached and written. Durations are seconds; the DGDs themselves are named by the pools.

    `access`: `in-cluster` uses the pod's service account, `kubeconfig` a file (`kubeconfig`, absent: $KUBECONFIG or
    ~/.kube/config) and a `context` of it (absent: the current one); `auto` takes the service account where there is one.
    `control_namespace` holds the lease, with the ledger in it, and operators' orders (absent: the cluster's namespace).

    Who decides holds a lease for `lease_s` and renews it every round. A write is given up after `write_deadline_s`, and two
    writes to one DGD are at least `write_spacing_s` apart.

    `drained_by`: `router`, ours, that finishes requests before a replica goes; or `pods`, where no router of ours is in front
    and only their own termination protects what they still serve. `engine_port`: where a replica answers HTTP (absent: the
    container port named `http`, if there is one). `unseen_termination_s`: how long released GPUs stay charged where pods may
    not be listed. `operator_managers`: field managers that set replicas on behalf of the DGDs' own operator.

    Where a role lets us list nodes and all pods, nothing grows that no node has room for; `gpu_label` is the label that tells a
    node's GPU type (absent: the usual ones of NVIDIA's and the clouds' discovery), by the words of the budget's name: `h100` is
    in `NVIDIA-H100-80GB-HBM3`. `see_nodes: false` leaves it out, where a cluster autoscaler makes nodes for replicas that wait.
    """

    access: Literal["auto", "in-cluster", "kubeconfig"] = "auto"
    kubeconfig: str | None = None
    context: str | None = None
    control_namespace: Name | None = None
    lease_s: PositiveFloat = 30.0
    write_deadline_s: PositiveFloat = 10.0
    write_spacing_s: NonNegativeFloat = 5.0
    drained_by: Literal["router", "pods"] = "router"
    engine_port: Annotated[int, Field(ge=1, le=65535, strict=True)] | None = None
    unseen_termination_s: NonNegativeFloat = 120.0
    operator_managers: tuple[str, ...] = OPERATOR_MANAGERS
    gpu_label: str | None = None
    see_nodes: bool = True


class NodeConfig(Section):
    """`count` nodes of the virtual cluster with `gpus` GPUs of one type each."""

    gpu_type: str
    gpus: PositiveInt
    count: PositiveInt = 1


class ClusterConfig(Section):
    """Where the replicas run. `virtual`: local processes that serve the mock engine; `kubernetes`: components of
    DynamoGraphDeployments, see `kubernetes`. `namespace` is that of every group that names no other.

    A replica is ready `cold_start_s` after it was ordered at the earliest (in Kubernetes: until one was measured). Of the
    virtual cluster alone: the minima that stand when it starts take `initial_cold_start_s`, and a replica that was told to end
    is killed after `termination_s`; where `nodes` are given, a replica starts only where its GPUs are free on one node (or on
    as many as its pool's `nodes_per_replica` says).
    """

    kind: Literal["virtual", "kubernetes"] = "virtual"
    namespace: Name = "demo"
    cold_start_s: NonNegativeFloat = 45.0
    initial_cold_start_s: NonNegativeFloat = 0.0
    termination_s: NonNegativeFloat = 5.0
    nodes: tuple[NodeConfig, ...] = ()
    kubernetes: KubernetesConfig = KubernetesConfig()


class ArbiterConfig(Section):
    """The rhythm and the temper of the arbiter.

    `mode` of the whole: a pool acts only where its own mode and this one let it. `observe`: steps are recorded and never
    applied; `approve`: they wait for `global-planner approve`.

    `stability` false: every round is decided from nothing, without holds, costs of moves or memory. `hold_s`: how long a
    smaller number must have sufficed before a pool is lowered (absent: as long as the pool takes to start, twice that up to two
    rounds, at most 60 s: what is back at once need not be kept). `move_horizon_s`: taking from another group must pay off
    within it; what it costs is the cold start, and the prefix hits that die with the replica: for `cache_loss_s`, until other
    replicas have its prefixes, the reported hit rate of its load is lost (a pool whose hit rate nobody reports has no cache to
    lose).
    `max_moves_per_hour` bounds the groups raised in this way (absent: any number). `trust_s`: so long a pool that says nothing
    is thought to carry what it last said. `debt_half_life_s`: how fast it is forgotten who borrowed, which decides between
    equals.

    `drain_deadline_s`: a release whose requests have not ended by then is postponed. `start_limit_s`: a replica that is not
    ready by then is cancelled; its pool then does not grow for `backoff_s` (absent: the cluster's cold start), doubled with
    every further failure up to `backoff_max_s`.

    `admission`: what the router lets in. Never more requests at once than the ready replicas hold within the SLA. `sla` (the
    default): no more to a prefill engine than it can begin in time; among those that wait, and are as important, the shortest
    prompt comes first, and who has waited for half of the TTFT is turned away (429 or 503, try again), because what it would
    get is too late and would delay the next. Under overload at least as many are served within their SLA as the plan says.
    Groups with aggregated pools, and several router processes (each sees only its part), are also held to the rate that the
    plan says the ready replicas carry. `rate`: this rate alone; whoever comes waits up to `router.queue_deadline_s`; under
    overload all who are served have then waited nearly that long, and hardly any is in time: for clients that would rather
    have a late answer than none.

    `admission_burst_s`: the router lets so many seconds' worth of a group's admitted rate through at once (one request at
    least): engines absorb a short burst sooner than its requests would come to their turn.

    `journal_max_mb`, `journal_max_age_s` (absent: any age) bound the journal; the oldest goes first. `calendar_start`: the time
    of schedules at model time 0, like `"2026-07-01T08:50:00+02:00"` (absent: the wall clock when the system is started)."""

    round_interval_s: PositiveFloat = 10.0
    mode: PoolMode = "act"
    objective: Literal["goodput", "max_min", "proportional", "first_come"] = "goodput"
    stability: Flag = True
    hold_s: NonNegativeFloat | None = None
    move_horizon_s: PositiveFloat = 300.0
    cache_loss_s: NonNegativeFloat = 60.0
    max_moves_per_hour: NonNegativeInt | None = None
    trust_s: NonNegativeFloat = 900.0
    debt_half_life_s: PositiveFloat = 3600.0
    drain_deadline_s: PositiveFloat = 300.0
    start_limit_s: PositiveFloat = 300.0
    backoff_s: PositiveFloat | None = None
    backoff_max_s: PositiveFloat = 1800.0
    admission: Literal["rate", "sla"] = "sla"
    admission_burst_s: NonNegativeFloat = 20.0
    journal_max_mb: PositiveInt = 64
    journal_max_age_s: PositiveFloat | None = None
    calendar_start: Moment | None = None


class RouterConfig(Section):
    """The public endpoint. Port 0: any free port. `admin_port` serves metrics and the planner's protocol, on loopback always.
    A `host` that other machines can reach needs `allow_remote: true`. `selection`: the pool of a request follows from the
    pools' `isl_max_tokens` (`rules`), or is the cheapest that is predicted to meet the group's SLA (`adaptive`).

    `admin_urls`: the admin listeners of router processes that run already, one each (absent: one router is started with the
    system); the token that they ask for is in `admin_token_file`."""

    host: str = "127.0.0.1"
    allow_remote: Flag = False
    port: Port = 0
    admin_port: Port = 0
    admin_urls: tuple[Annotated[str, Field(pattern=r"^https?://[^/\s?#]+$")], ...] = ()
    admin_token_file: str | None = None
    queue_deadline_s: PositiveFloat = 30.0
    queue_limit: PositiveInt = 1000
    request_timeout_s: PositiveFloat = 600.0
    selection: Literal["rules", "adaptive"] = "rules"


class CredentialConfig(Section):
    """Who may ask the arbiter over HTTP: the bearer of a token, known by its `sha256` (`printf %s "$TOKEN" | sha256sum`) or
    by the `token_file` that holds it (read for every request, because tokens are rotated); one of the two.

    `pools`: names or patterns with `*` of those that it may propose for. `wake`: it may wake models (for routers). Each may
    read the status. SLA, priority and weight are the topology's: no message carries them.
    """

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    token_file: str | None = None
    pools: tuple[Pattern, ...] = ()
    wake: Flag = False


class ApiConfig(Section):
    """Where the arbiter answers HTTP: proposals, scale requests, wakes, status, metrics. Port 0: any free port. A `host`
    that other machines can reach needs `allow_remote: true`. `max_body_kb` bounds one request. `wake_for_s`: how long a
    woken model's pools want a replica at least."""

    host: str = "127.0.0.1"
    allow_remote: Flag = False
    port: Port = 0
    max_body_kb: Annotated[int, Field(ge=1, le=16 * 1024, strict=True)] = 1024
    wake_for_s: PositiveFloat = 120.0
    credentials: tuple[CredentialConfig, ...] = ()


class Sla(Section):
    """Time to first token, from arrival at the router, and time between tokens: model milliseconds."""

    ttft_ms: PositiveFloat
    itl_ms: PositiveFloat


class PoolConfig(Section):
    """One pool. `dgd` and `component` say where it runs (absent: a DGD of the pool's own name, a component of its role's);
    pools that share a `dgd` are planned by one planner: one pool, or one prefill and one decode pool.

    `isl_max_tokens`: among the pools of one role, prompts up to this length come here (absent: any length). `profile`: a
    directory of profile data, relative to the topology file. `planner`: settings of this pool's planner, over the group's and
    the topology's. `planned: outside`: its planner is started by somebody else and reports over HTTP (see `api`).
    `guarantee_replicas` are reserved like the minimum, but lent to others while unused. `mode`: see the arbiter's.
    `start_limit_s`: instead of the arbiter's. `max_in_flight` bounds the requests that the router sends to one replica at a
    time. `nodes_per_replica`: a replica's GPUs are spread evenly over so many nodes (of the virtual cluster; in Kubernetes the
    DGD says so).
    """

    name: Name
    role: Role
    gpu_type: str
    gpus_per_replica: PositiveInt = 1
    nodes_per_replica: PositiveInt = 1
    min_replicas: NonNegativeInt = 1
    max_replicas: PositiveInt | None = None
    guarantee_replicas: NonNegativeInt = 0
    mode: PoolMode = "act"
    start_limit_s: PositiveFloat | None = None
    dgd: Name | None = None
    component: str | None = None
    isl_max_tokens: PositiveInt | None = None
    max_in_flight: PositiveInt | None = None
    profile: str
    planned: Literal["inside", "outside"] = "inside"
    planner: dict[str, Any] = Field(default_factory=dict)

    @property
    def dgd_name(self) -> str:
        return self.dgd or self.name

    @property
    def component_name(self) -> str:
        return self.component or self.role


class EngineConfig(Section):
    """What the mock engine of a group can hold, beside its pools' profiles. `max_kv_tokens` absent: what the profile says.
    `front_ms`: what passes before an engine's scheduler sees a request, where the profile does not hold it already."""

    max_model_len: PositiveInt = 131_072
    max_kv_tokens: PositiveInt | None = None
    tokens_per_chunk: PositiveInt = 4
    prefill_chunk_tokens: PositiveInt = 8192
    max_num_seqs: PositiveInt = 256
    kv_transfer_ms: NonNegativeFloat = 50.0
    kv_hold_s: NonNegativeFloat = 120.0
    front_ms: NonNegativeFloat = 0.0


class GroupConfig(Section):
    """The pools that together serve one model: one prefill and one decode stage, or aggregated pools. Groups of a higher
    `priority` are served first; within one priority, `weight` is what a request is worth. `namespace`: where its DGDs are
    (absent: the cluster's). `planner`: settings of all its pools' planners."""

    name: Name
    model: ModelName
    namespace: Name | None = None
    sla: Sla
    priority: Annotated[int, Field(strict=True)] = 0
    weight: PositiveFloat = 1.0
    engine: EngineConfig = EngineConfig()
    planner: dict[str, Any] = Field(default_factory=dict)
    pools: tuple[PoolConfig, ...] = Field(min_length=1)


class Topology(Section):
    """The whole deployment. `selectors`: rules for many pools at once. `schedules`: known events. `overrides`:
    numbers that stand above all that. `planner`: settings of
    every pool's planner, unless its group or itself says otherwise."""

    name: Name
    budget: BudgetConfig
    cluster: ClusterConfig = ClusterConfig()
    arbiter: ArbiterConfig = ArbiterConfig()
    router: RouterConfig = RouterConfig()
    api: ApiConfig = ApiConfig()
    selectors: tuple[SelectorConfig, ...] = ()
    schedules: tuple[ScheduleConfig, ...] = ()
    overrides: tuple[OverrideConfig, ...] = ()
    planner: dict[str, Any] = Field(default_factory=dict)
    groups: tuple[GroupConfig, ...] = Field(min_length=1)

    @property
    def control_namespace(self) -> str:
        """Where the lease, the ledger and operators' orders are kept in a Kubernetes cluster."""
        return self.cluster.kubernetes.control_namespace or self.cluster.namespace

    def namespace_of(self, group: GroupConfig) -> str:
        """The namespace of a group's DGDs."""
        return group.namespace or self.cluster.namespace

    def placed_pools(self) -> Iterator[tuple[GroupConfig, PoolConfig]]:
        """Every pool with its group, in the order of the file."""
        for group in self.groups:
            for pool in group.pools:
                yield group, pool
