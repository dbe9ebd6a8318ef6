"""Observations of pools, made of what routers, frontends and Prometheus expose."""
