"""From demand and live load to a number of replicas, and the reason for it. Pure."""
