"""Our one BPF application, seen from user space.

`layout` mirrors bpf/accel.h; `datapath` loads, attaches, pins and steers the
programs; `selftest` finds out what this kernel bears; `capture` counts what
still crosses a pod's interfaces.
"""
