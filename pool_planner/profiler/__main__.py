"""[I/O] `python -m pool_planner.profiler …`: the same as `pool-planner profile …`."""

from pool_planner.profiler.command import profile_command

if __name__ == "__main__":
    profile_command(prog_name="python -m pool_planner.profiler")
