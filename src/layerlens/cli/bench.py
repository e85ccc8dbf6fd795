"""`layerlens bench`: how fast the readout is on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from layerlens.cli.device import pick_device
from layerlens.cli.options import AsJson, Device, TrustRemoteCode, print_json


def bench_command(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Model whose d_model, vocabulary and dtype to take; its weights are not read."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Vectors to decode: tokens x layers x sites.", min=1)] = 512,
    d_model: Annotated[int, typer.Option(help="Length of a vector, if no model is named.", min=1)] = 1024,
    vocabulary: Annotated[int, typer.Option(help="Rows of the unembedding, if no model is named.", min=1)] = 151_936,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto takes the model's, or float32.")] = "auto",
    device: Device = None,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1, max=1024)] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds; the best round of each method counts.", min=1)] = 5,
    compiled: Annotated[bool, typer.Option("--compile", help="Also time the backend 'compile'.")] = False,
    memory: Annotated[bool, typer.Option(help="Also measure peak memory, on a CPU each method in a process of its own.")] = True,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Also write the table to this CSV file.")] = None,
) -> None:
    """Time the readout of entropy on this machine, beside the bare matrix product and log_softmax of whole logits.

    All methods take turns in one process; "x product" is the time relative to the fastest bare product, "|dS|" the largest error of the
    entropy against float64. Vectors and weights are random, because speed does not depend on their values.

    Example: layerlens bench Qwen/Qwen3-4B --rows 2048
    """
    from layerlens.decode.bench import Shape, bench
    from layerlens.models import read_unembedding_shape
    from layerlens.storage.bundled import bundled_model
    from layerlens.storage.files import write_text

    if model is not None:
        d_model, vocabulary, stored = read_unembedding_shape(bundled_model(model) or model, trust_remote_code=trust_remote_code)
        dtype = stored if dtype == "auto" else dtype
    shape = Shape(rows, d_model, vocabulary, "float32" if dtype == "auto" else dtype, pick_device(device, None) or "cpu")
    table = bench(shape, repeats=repeats, threads=threads, compiled=compiled, memory=memory)
    if out is not None:
        write_text(out, table.to_csv())
    if as_json:
        print_json({"shape": asdict(shape), "threads": threads, "repeats": repeats, "methods": _records(table)})
        return
    print(
        f"{rows} rows, d_model {d_model:,}, vocabulary {vocabulary:,}, {shape.dtype}, {shape.device}, threads {threads}, best of {repeats}"
    )
    print(f"{'method':26}  {'seconds':>8}  {'x product':>9}  {'GFLOP/s':>8}  {'peak MiB':>8}  {'|dS| nats':>9}")
    for method, row in table.iterrows():
        numbers = [f"{row['seconds']:8.4f}", f"{row['ratio']:9.2f}", f"{row['gflops']:8.1f}"]
        measured = [f"{row['peak_mib']:8.0f}", f"{row['error']:9.1e}"]
        print(f"{method:26}  " + "  ".join([*numbers, *(cell.replace("nan", "  -") for cell in measured)]))


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.reset_index().to_dict("records")
    return [{str(name): None if value != value else value for name, value in row.items()} for row in rows]
