"""One planner a pool: traffic in, demand out."""
