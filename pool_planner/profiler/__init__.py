"""What a replica can do, found out before it is deployed: engine shapes compared, curves swept, manifests written."""
