"""The router's tests. With PLANNER_COMPILED=yes they are of the compiled code, which is chosen before anything imports the
plain one."""

import os

from pool_planner.compiled import ENV_CHOICE
from router.compiled_set import ROUTER

if os.environ.get(ENV_CHOICE) == "yes" and not ROUTER.in_use():
    ROUTER.choose("yes")
