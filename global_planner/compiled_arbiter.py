"""[I/O] Chooses the arbiter's code when it is imported: the module of the arbiter's actor imports this one first, so that it
holds in whatever process Ray starts the actor."""

from global_planner.compiled_sets import ARBITER
from pool_planner.compiled import wanted

CHOSEN = ARBITER.choose(wanted())
"""What people should read of it."""
