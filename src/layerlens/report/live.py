"""A report of folders that are still being filled, served to this machine alone: reading only, on the loopback interface."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from layerlens.errors import LayerLensError, RunError
from layerlens.report.report import ReportOptions, report_html
from layerlens.results import open_run, open_training
from layerlens.results.training_log import is_training

HOST = "127.0.0.1"
WATCHED = (
    "run.json",
    "samples/[0-9]*",
    "means/[0-9]*",
    "schedule.json",
    "trainer_state.json",
    "checkpoint-*/trainer_state.json",
    "monitor/summary.jsonl",
)
"""Files whose change makes a new page."""
WAITING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="3"><title>layerlens watch</title></head>
<body><h1>layerlens watch</h1><p>{}</p><p>This page asks again every three seconds.</p></body></html>"""


class LiveReport:
    """The page of folders as they are now.

    Args:
        folders: of runs and trainings.
        every: seconds for which a page counts as new, however quickly the folders are filled.
        options: fields of `ReportOptions`.
    """

    def __init__(self, folders: Sequence[Path], every: float = 5.0, **options: Any):
        ReportOptions(**options)  # what is wrong with them is said now, not in the page
        self.folders, self.every, self.options = list(folders), every, options
        self._lock, self._page, self._made_of = Lock(), "", ""
        self._version, self._asked = "", -every

    def version(self) -> str:
        """A digest that changes when a file of the folders does."""
        with self._lock:
            if time.monotonic() - self._asked >= self.every:
                files = sorted(file for folder in self.folders for pattern in WATCHED for file in folder.glob(pattern))
                found = [(str(file), stat.st_mtime_ns, stat.st_size) for file in files if (stat := _stat(file)) is not None]
                self._version, self._asked = hashlib.sha256(repr(found).encode()).hexdigest()[:16], time.monotonic()
            return self._version

    def page(self) -> str:
        """The page; while the folders hold nothing yet, one that says so."""
        version = self.version()
        with self._lock:
            if version != self._made_of:
                try:
                    logs = [open_training(folder) for folder in self.folders if is_training(folder)]
                    runs = [open_run(folder) for folder in self.folders if not is_training(folder)]
                    self._page = report_html(runs, logs, live=True, **self.options)
                except LayerLensError as error:
                    return WAITING.format(escape(str(error)))
                self._made_of = version
            return self._page


def _stat(file: Path) -> Any:
    try:
        return file.stat()
    except FileNotFoundError:  # replaced by a newer one just now
        return None


def serve(report: LiveReport, port: int = 0) -> ThreadingHTTPServer:
    """A server of the report at 127.0.0.1, which `serve_forever` starts; port 0 takes a free one. Raises RunError if the port is taken.

    It answers `GET /` and `GET /version`, and only to who asks for it by its own address, so that no page of another site can read it.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "layerlens", ""

        def do_GET(self) -> None:
            name, _, _ = (self.headers.get("Host") or "").rpartition(":")
            path = self.path.partition("?")[0]
            if name not in (HOST, "localhost"):
                self.send_error(403, "asked by another name")
            elif path == "/":
                self._answer(report.page(), "text/html; charset=utf-8")
            elif path == "/version":
                self._answer(report.version(), "text/plain; charset=utf-8")
            else:
                self.send_error(404)

        def _answer(self, text: str, kind: str) -> None:
            content = text.encode("utf-8")
            self.send_response(200)
            for header, value in (
                ("Content-Type", kind), ("Content-Length", str(len(content))), ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"), ("Content-Security-Policy", "frame-ancestors 'none'"),
            ):  # fmt: skip
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Says nothing: the terminal belongs to the command."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise RunError(f"port {port} of {HOST} cannot be used ({error.strerror}): name another, or 0 for one that is free") from error
    server.daemon_threads = True
    return server
