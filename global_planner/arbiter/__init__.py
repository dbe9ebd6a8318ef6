"""The arbiter's decision: who gets how many replicas, for everybody at once. Pure.

    reports + holdings ─► demand.py (what each pool can use) ─► frontier.py (a group's bundles) ─► knapsack.py (classes, budget)
        ─► solve.py (stability, what is left over, the allocation) ─► told.py (reasons, limits, runners-up)

`arbitrate(state, inputs, policy) -> (state, Allocation)` in solve.py is the only way in.
"""
