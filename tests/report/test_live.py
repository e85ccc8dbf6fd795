"""`layerlens watch`: the page follows the folder, and answers this machine alone."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from layerlens.report.live import HOST, LiveReport, serve
from layerlens.results import Run, RunFolder
from tests.support.browser import Page
from tests.support.synthetic_runs import make_run
from tests.support.training_folders import write_training


@contextmanager
def served(*folders: Path) -> Iterator[int]:
    """The port of a server of these folders."""
    server = serve(LiveReport(folders, every=0.0))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(port: int, path: str = "/", method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request(method, path, headers={"Host": host or f"{HOST}:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8")
    finally:
        connection.close()


def fill(folder: Path, run: Run, sample: int) -> None:
    RunFolder(folder).write(sample, run.sample(sample))


def begun(folder: Path) -> Run:
    run = make_run([0.3, -0.2], samples=3, tokens=4)
    RunFolder.begin(folder, run.manifest)
    return run


def test_page_follows_the_run_as_it_is_filled(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    with served(tmp_path / "run") as port:
        status, page = ask(port)
        assert status == 200
        assert "no sample is finished yet" in page
        fill(tmp_path / "run", run, 0)
        first = ask(port, "/version")[1]
        assert '"1 of 3"' in ask(port)[1]
        assert ask(port, "/version")[1] == first
        fill(tmp_path / "run", run, 1)
        assert ask(port, "/version")[1] != first
        assert '"2 of 3"' in ask(port)[1]


def test_a_training_is_watched_too(tmp_path: Path) -> None:
    with served(write_training(tmp_path / "bupo", layers=3)) as port:
        assert '"by_layer"' in ask(port)[1]


def test_server_reads_only_and_answers_only_to_its_own_address(tmp_path: Path) -> None:
    fill(tmp_path / "run", begun(tmp_path / "run"), 0)
    before = sorted(tmp_path.rglob("*"))
    with served(tmp_path / "run") as port:
        assert ask(port, "/version", host="evil.example")[0] == 403
        assert ask(port, "/version", host=f"localhost:{port}")[0] == 200
        assert ask(port, "/../run.json")[0] == 404
        for method in ("POST", "PUT", "DELETE"):
            assert ask(port, "/", method)[0] == 501
        assert ask(port)[0] == 200
    assert sorted(tmp_path.rglob("*")) == before


def test_browser_takes_up_a_new_sample_by_itself(tab: Page, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    fill(tmp_path / "run", run, 0)
    with served(tmp_path / "run") as port:
        tab.open(f"http://{HOST}:{port}/", "theme=dark")
        fill(tmp_path / "run", run, 1)
        tab.wait("typeof LL === 'object' && LL.data.texts[0].samples.length === 2")
        assert tab.js("document.documentElement.dataset.theme") == "dark"
        assert [message for message in tab.messages() if "favicon" not in message] == []
        tab.driver.get("about:blank")
