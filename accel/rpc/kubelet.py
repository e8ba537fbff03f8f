"""The kubelet's Pods API: every pod of the node, and each change, over a unix socket of root's.

Field numbers are those of kubernetes/kubelet, pkg/apis/pods/v1alpha1/api.proto, as Kubernetes
1.37 serves it, on by default, and of k8s.io/api/core/v1 and k8s.io/apimachinery generated.proto.
"""

from __future__ import annotations

from collections.abc import Mapping

from accel.rpc.protobuf import OpenEnum, field, message

WATCH_PODS = "/v1alpha1.Pods/WatchPods"


class EventType(OpenEnum):
    UNSPECIFIED = 0
    ADDED = 1
    MODIFIED = 2
    DELETED = 3
    INITIAL_SYNC_COMPLETE = 4  # after an ADDED for each pod there was


@message
class WatchPodsRequest:
    pass


@message
class WatchPodsEvent:
    type: EventType = field(1)
    pod: bytes = field(2)  # a Pod; of a deleted one only name, namespace and uid are sure


@message
class ObjectMeta:
    name: str = field(1)
    namespace: str = field(3)
    uid: str = field(5)
    annotations: Mapping[str, str] = field(12)


@message
class Pod:
    metadata: ObjectMeta = field(1)
