"""Maps in the kernel: made, read, written, iterated over; rings, arenas, variables."""
