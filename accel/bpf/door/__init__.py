"""The door to the kernel: bpf(2), its layouts, descriptors, pins, and what the kernel can do."""
