"""Small readers of /proc, cgroup v2 and namespaces.

Each is a pure parser of text and a thin function around it that reads the file.
Knows nothing of pods.  What may vanish while we look (a process, its namespace,
its cgroup) is None when it has; that is never an exception.
"""
