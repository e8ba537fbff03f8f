"""nginx as the application of a pod."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from accel.demo.container import Container
from accel.demo.errors import MissingProgram
from accel.demo.process import Process

PORT = 8080
START_SECONDS = 10.0

CONFIG = """\
daemon off;
worker_processes {workers};
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_max_body_size 64m;
    large_client_header_buffers 4 32k;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {port} backlog=4096;
        listen [::]:{port} backlog=4096 ipv6only=on;
        location / {{
            default_type text/plain;
            return 200 "a greeting from nginx\\n";
        }}
        # A body is read to its end, then answered by proxying to ourselves: nginx reads
        # no body for `return`, it throws it away.
        location /upload {{
            proxy_pass http://unix:{directory}/length.sock:/;
        }}
    }}
    server {{
        listen unix:{directory}/length.sock;
        location / {{
            client_max_body_size 64m;
            default_type text/plain;
            return 200 "$http_content_length\\n";
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx_started(container: Container, directory: Path, *, workers: int = 1) -> Iterator[Process]:
    """Run nginx in a container, on PORT of both families; its files go to `directory`.

    `/` answers a short text; `/upload` reads a body to its end and answers its length.

    Raises:
        MissingProgram: nginx is not installed.
        TestbedError: It did not become ready.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise MissingProgram("nginx", remedy="apt-get install nginx-light")
    config = directory / "nginx.conf"
    config.write_text(CONFIG.format(directory=directory, port=PORT, workers=workers))
    for path in (directory, config):
        container.give(path)
    # "-e stderr": before it reads its configuration it would open a file under /var/log.
    argv = [program, "-e", "stderr", "-p", str(directory), "-c", str(config)]
    with container.started(argv, name=f"nginx of pod {container.name}") as process:
        process.wait_until(
            # Written once all sockets listen (main() in src/core/nginx.c).
            (directory / "nginx.pid").exists,
            seconds=START_SECONDS,
            remedy="see its last words; another process of the pod may have the port",
        )
        yield process
