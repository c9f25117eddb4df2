"""A kubeconfig with exactly the rights of a service account, for tests that run something as it."""

import json
from pathlib import Path
from typing import Any

from dl2.embedded.cluster import EmbeddedCluster


def kubeconfig_of(cluster: EmbeddedCluster, path: Path, namespace: str, name: str, hours: int = 1) -> Path:
    """Writes to `path` a kubeconfig of service account `namespace/name`, by a token that the API server gives out.

    The account must exist. Only the user differs from the administrator's kubeconfig.
    """
    token = cluster.kubectl("create", "token", name, "-n", namespace, f"--duration={hours}h").strip()
    admin = json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": admin["clusters"][0]["cluster"]}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": "cluster", "user": name, "namespace": namespace}}],
        "current-context": name,
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))
    return path
