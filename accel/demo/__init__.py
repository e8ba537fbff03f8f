"""Two meshed pods on this machine, and what acceleration makes of them.

A pod here is what a Kubernetes node would make: a network namespace on a bridge, one
cgroup for each container, Istio's own packet rules, a real Envoy as the sidecar.  Only
the kernel's own means are used, so neither a container engine nor a cluster is needed.

`testbed` builds pods and takes them down again; `load` and `measure` put a number on
them; `run` is the demonstration.  The host's own namespace, firewall and sysctls are
never touched: the bridge lives in a namespace as well.
"""
