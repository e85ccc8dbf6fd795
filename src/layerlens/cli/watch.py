"""`layerlens watch`: the report of what is running."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from layerlens.cli.report import RewardOption
from layerlens.errors import RunError


def watch(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN|TRAINING", help="Folders that `layerlens analyze` or `layerlens train` is filling.")
    ],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    every: Annotated[float, typer.Option(help="Seconds after which a page is made anew if the folders have changed.", min=1.0)] = 5.0,
    reward: RewardOption = None,
) -> None:
    """Serve the report of a run or training while it is being made, to this machine alone. Ctrl-C ends it; nothing is written.

    Example: layerlens watch runs/qwen3-4b
    """
    from layerlens.report.live import HOST, LiveReport, serve
    from layerlens.report.page import plotly

    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder}: no such folder; begin the analysis or training first, or name its folder as it does")
    plotly()  # what is missing is said now, not in the browser
    server = serve(LiveReport(folders, every, reward=reward), port)
    address = f"http://{HOST}:{server.server_address[1]}/"
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    if browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    finally:
        server.server_close()
