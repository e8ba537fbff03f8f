"""containerd's event service: what it says of containers and tasks, in every namespace.

Field numbers are those of containerd/containerd, api/services/events/v1/events.proto and
api/events/{container,task}.proto, the same in 1.6, 1.7 and 2.x.

Every subscriber gets every event; one that stops reading stops nothing, but containerd keeps
for it in memory what it has not read.  No headers come before the first event, so only an
event of one's own, by PUBLISH, tells that a subscription is in force.
"""

from __future__ import annotations

from accel.rpc.protobuf import Int32, Int64, UInt32, field, message

SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
PUBLISH = "/containerd.services.events.v1.Events/Publish"  # wants NAMESPACE in its metadata

NAMESPACE = "containerd-namespace"


@message
class Timestamp:
    seconds: Int64 = field(1)
    nanos: Int32 = field(2)


@message
class Any:
    type_url: str = field(1)  # "containerd.events.TaskStart", without a prefix
    value: bytes = field(2)


@message
class SubscribeRequest:
    # Any of these; commas within one mean all of its parts:
    # "namespace==k8s.io,topic~=^/tasks/(create|start|exit|delete)$"
    filters: tuple[str, ...] = field(1)


@message
class PublishRequest:
    topic: str = field(1)
    event: Any = field(2)


@message
class Empty:
    pass


@message
class Envelope:
    timestamp: Timestamp = field(1)
    namespace: str = field(2)
    topic: str = field(3)
    event: Any = field(4)


@message
class ContainerCreate:
    id: str = field(1)
    image: str = field(2)


@message
class TaskCreate:
    container_id: str = field(1)
    bundle: str = field(2)
    pid: UInt32 = field(6)


@message
class TaskStart:
    container_id: str = field(1)
    pid: UInt32 = field(2)


@message
class TaskExit:
    container_id: str = field(1)
    id: str = field(2)  # of the process: another than container_id's is an exec
    pid: UInt32 = field(3)
    exit_status: UInt32 = field(4)
    exited_at: Timestamp = field(5)


@message
class TaskDelete:
    container_id: str = field(1)
    pid: UInt32 = field(2)
    exit_status: UInt32 = field(3)
    exited_at: Timestamp = field(4)
    id: str = field(5)
