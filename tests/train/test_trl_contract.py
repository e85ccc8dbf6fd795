"""The inner methods of TRL that BuPO relies on, and the refusal of a TRL without them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from inspect import signature

import pytest
from trl import GRPOTrainer

import layerlens.train
from layerlens.errors import TrainingError
from layerlens.train.base_trainer import FORWARD_EXTRAS
from layerlens.train.trl_contract import require_trl_contract


def test_the_installed_trl_keeps_the_contract() -> None:
    require_trl_contract()
    parameters = signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    assert set(FORWARD_EXTRAS) <= set(parameters)
    assert list(signature(GRPOTrainer._compute_loss).parameters) == ["self", "model", "inputs"]
    assert list(signature(GRPOTrainer._generate_and_score_completions).parameters) == ["self", "inputs"]


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.17.0", r"TRL 1\.16.*installed is 1\.17\.0: pip install 'trl>=1\.16,<1\.17'"),
        ("1.1.16", r"installed is 1\.1\.16"),
        (None, r"training needs TRL: pip install 'layerlens-policy\[train\]'"),
    ],
)
def test_another_trl_is_refused_when_the_trainer_is_asked_for(version: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise PackageNotFoundError(name)
        return version

    monkeypatch.setattr("importlib.metadata.version", installed)
    for name in ("BuPOConfig", "BuPOTrainer"):
        with pytest.raises(TrainingError, match=message) as refusal:
            getattr(layerlens.train, name)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("version", ["4.57.6", "5.4.0", "5.16.1"])
def test_transformers_too_old_for_training_is_refused_by_its_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"trl": "1.16.0", "transformers": version}.__getitem__)
    with pytest.raises(TrainingError, match=rf"transformers 5\.17 or newer; installed is {version}: pip install 'transformers>=5\.17'"):
        require_trl_contract()


def test_a_trl_with_another_method_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, batch: None)
    with pytest.raises(TrainingError, match=r"GRPOTrainer\._compute_loss lacks inputs"):
        require_trl_contract()


def test_a_trl_whose_vllm_keeps_other_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialise(self: object) -> None:
        self._dist = None

    monkeypatch.setattr("trl.generation.vllm_generation.VLLMGeneration.__init__", initialise)
    with pytest.raises(TrainingError, match="VLLMGeneration lacks _weight_metadata: pip install"):
        require_trl_contract()


def test_a_trl_with_another_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("trl.trainer.utils._ChunkedLogProbFunction")
    with pytest.raises(TrainingError, match="its log-probability kernel differs: pip install"):
        require_trl_contract()
