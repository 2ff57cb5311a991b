"""The Ray Serve deployments of a cluster, and what routes and scales them."""
