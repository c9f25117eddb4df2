"""The embedded cluster: a real Kubernetes control plane on this machine, for demos and tests.

`from dl2.embedded.cluster import EmbeddedCluster`; nothing is imported here, so that commands that need no
cluster do not pay for it.
"""
