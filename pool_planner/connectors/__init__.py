"""Who carries a planner's decisions out: the arbiter, an outside system, or the Kubernetes API. One port, one file each."""
