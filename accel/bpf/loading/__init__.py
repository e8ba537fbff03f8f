"""Load: an ObjectSpec becomes maps and verified programs in the running kernel."""
