"""The arbiter: one GPU budget shared by all pools, by what each GPU is worth in SLA attainment."""
