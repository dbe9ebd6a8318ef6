"""One budget shared by what each GPU is worth: `arbitrate(state, inputs, policy) -> (state, allocation)`. Pure."""

from global_planner.arbiter.solve import arbitrate
from global_planner.arbiter.state import ArbiterPolicy, ArbiterState

__all__ = ["ArbiterPolicy", "ArbiterState", "arbitrate"]
