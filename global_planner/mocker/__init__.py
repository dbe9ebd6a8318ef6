"""Engines and a cluster that need no GPU: real processes whose timing is the engine model's."""
