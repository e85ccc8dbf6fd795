"""The names that scripts rely on, what importing costs, and a user who passes odd but harmless things."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import layerlens as ll

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    """Runs code in a fresh interpreter, where no annotation is checked: as a user does."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there_and_documented() -> None:
    assert len(set(ll.__all__)) == len(ll.__all__)
    for name in ll.__all__:
        value = getattr(ll, name)
        assert value is getattr(ll, name)
        assert value.__doc__, name
    assert ll.__version__
    assert set(ll.__all__) <= set(dir(ll))
    with pytest.raises(AttributeError, match="no attribute 'analyse'"):
        ll.analyse  # noqa: B018


def test_functions_stay_functions_whatever_is_imported() -> None:
    for module in (
        "analysis.pipeline",
        "selection.comparison",
        "selection.layer",
        "prompts.readers",
        "models.generation",
        "models.lens",
        "models.policy",
        "results.difference",
        "results.run",
        "metrics.pass_at_k",
    ):
        importlib.import_module(f"layerlens.{module}")
    for name in ("analyze", "compare", "difference", "load", "open_run", "read_prompts", "select_layer"):
        assert inspect.isfunction(getattr(ll, name)), name
    for name in ("Generation", "InternalPolicy", "LayerChoice", "LensModel", "Run", "Sample"):
        assert inspect.isclass(getattr(ll, name)), name


def test_no_public_name_hides_a_module() -> None:
    folder = Path(ll.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
    assert set(ll.__all__) & modules <= {"plots"}


def test_importing_is_cheap() -> None:
    out = run(
        "import sys, layerlens\n"
        "print(sorted({'torch', 'matplotlib', 'transformers', 'xarray', 'pandas', 'numpy', 'seaborn'} & set(sys.modules)))\n"
        "import layerlens.cli\n"
        "print(sorted({'torch', 'matplotlib', 'transformers'} & set(sys.modules)))\n"
    )
    assert out.splitlines() == ["[]", "[]"]


def test_a_user_with_numpy_integers_and_odd_arguments() -> None:
    out = run(
        "import tempfile, numpy as np, torch\n"
        "import layerlens as ll\n"
        "from tests.support.tiny_models import tiny_model, tiny_tokenizer\n"
        "from tests.support.synthetic_runs import make_run\n"
        "lens = ll.LensModel.wrap(tiny_model(), tiny_tokenizer())\n"
        "for ids in (np.array([9, 10, 11]), torch.tensor([9, 10, 11]), [np.int32(9), 10, 11], range(9, 12)):\n"
        "    assert ll.Sample(ids, np.int64(1)) == ll.Sample([9, 10, 11], 1)\n"
        "assert ll.Sample([9], id=5).id == '5'\n"
        "def refused(f, text):\n"
        "    try: f()\n"
        "    except ll.LayerLensError as error: assert text in str(error) and '\\n' not in str(error), error\n"
        "    else: raise AssertionError(text)\n"
        "refused(lambda: ll.Sample([1.5]), 'whole numbers')\n"
        "refused(lambda: ll.analyze(lens, 'math.parquet'), 'no run folder: read_prompts makes')\n"
        "refused(lambda: ll.analyze(lens, []), 'no samples')\n"
        "refused(lambda: ll.analyze(lens, [ll.Sample([9])], top_k=-1), 'top_k must be 0 or more')\n"
        "refused(lambda: ll.analyze(lens, [ll.Sample([9])], layers=0), 'counted from 1')\n"
        "refused(lambda: ll.analyze(lens, [ll.Sample([9])], layers=[]), 'counted from 1')\n"
        "refused(lambda: ll.analyze(lens, [ll.Sample([9])], sites='resid'), 'unknown site')\n"
        "refused(lambda: ll.analyze(lens, [ll.Sample([9])], metrics=[]), 'none given')\n"
        "refused(lambda: ll.analyze(lens, [ll.Sample([9])], norm='layer'), 'unknown norm')\n"
        "refused(lambda: ll.analyze(lens, [ll.Sample([9])], rows='some'), 'rows must be')\n"
        "refused(lambda: ll.analyze(lens, [ll.Sample([9])], temperature=0), 'temperature must be above 0')\n"
        "refused(lambda: ll.select_layer(make_run([1, -1]), 'best'), 'unknown rule')\n"
        "refused(lambda: ll.compare([make_run([1, -1])], rule='best'), 'unknown rule')\n"
        "generation = ll.Generation(np.int64(3), seed=np.int64(2), temperature=1)\n"
        "with tempfile.TemporaryDirectory() as out:\n"
        "    samples = (ll.Sample([9, i], 2) for i in range(10, 13))\n"
        "    run = ll.analyze(lens, samples, generate=generation, out=out + '/run', top_k=np.int64(2))\n"
        "    again = [ll.Sample([9, i], 2) for i in range(10, 13)]\n"
        "    ll.analyze(lens, again, generate=ll.Generation(3, seed=2), out=out + '/run', top_k=2)\n"
        "    assert run.complete\n"
        "one = ll.analyze(lens, [ll.Sample([9]), ll.Sample([9, 10, 11], 1)])\n"
        "assert one.mean('entropy').attrs['samples'] == 1\n"
        "assert len(ll.compare(run for run in [make_run([1, -1]), make_run([1, -1])])) == 2\n"
        "print('done')\n"
    )
    assert out == "done\n"
