"""[I/O] The commands of people who operate a system: what it decided and why, and what it is told to do or to leave.

Each works on the files of a system's folder (journal, operators' folder, clock), or on the orders in its cluster, so all of
them work while the arbiter is down.
"""

from global_planner.commands.compile import compile_
from global_planner.commands.compose import compose
from global_planner.commands.custody import adopt, release
from global_planner.commands.init import init
from global_planner.commands.look import compare, explain, status
from global_planner.commands.operate import approve, freeze, override, refuse, unfreeze
from global_planner.commands.replay import replay
from global_planner.commands.schedule import schedule
from global_planner.commands.whatif import whatif

COMMANDS = (
    status,
    explain,
    compare,
    replay,
    whatif,
    approve,
    refuse,
    freeze,
    unfreeze,
    override,
    adopt,
    release,
    schedule,
    compose,
    compile_,
    init,
)

__all__ = ["COMMANDS"]
