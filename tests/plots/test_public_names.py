"""The public names of plots: each a function, in the file of its name."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys

import pytest

from layerlens import plots
from layerlens.plots import runs, training


def test_plots_names_stay_functions_whatever_is_imported() -> None:
    for module in pkgutil.walk_packages(plots.__path__, "layerlens.plots."):
        importlib.import_module(module.name)
    for name in plots.__all__:
        assert inspect.isfunction(getattr(plots, name)), name


def test_plots_names_hide_no_module() -> None:
    assert {module.name for module in pkgutil.iter_modules(plots.__path__)}.isdisjoint(plots.__all__)


def test_each_file_of_runs_and_training_holds_the_public_function_of_its_name() -> None:
    files = {module.name: f"{room.__name__}.{module.name}" for room in (runs, training) for module in pkgutil.iter_modules(room.__path__)}
    assert set(files) == set(plots.__all__) - {"data", "save"}
    for name, file in files.items():
        assert getattr(importlib.import_module(file), name) is getattr(plots, name)
    assert plots.save.__module__ == "layerlens.plots.kit.save"


@pytest.mark.parametrize("name", plots.__all__)
def test_plots_document_every_argument(name: str) -> None:
    function = getattr(plots, name)
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^ +(\w+, )*{argument}(, \w+)*: ", function.__doc__, re.MULTILINE), argument


def test_importing_plots_chooses_no_backend_and_opens_no_figure() -> None:
    code = (
        "import matplotlib, layerlens.plots, matplotlib.pyplot as plt\n"
        "assert matplotlib.rcParams._get_backend_or_none() is None and not plt.get_fignums()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={key: value for key, value in os.environ.items() if key != "MPLBACKEND"})
