"""What a choice of layer recommends, for someone who has read nothing else: which layer, why, how stable, and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from layerlens.selection.choice import LayerChoice
from layerlens.selection.rules import NAMED
from layerlens.selection.words import enough, nats, percent
from layerlens.types import FORWARD_NORMS, RULES

END = "an end of the model by construction"
"""What an open answer is, in words."""


def recommendation(choice: LayerChoice) -> Iterator[tuple[str, str]]:
    """Yields labels and sentences, the recommendation first. A choice of an earlier version says less, and nothing false."""
    if choice.layer is None:
        yield "recommended", f"no layer to train under norm {choice.norm}"
    else:
        yield "recommended", f"train layer {choice.layer} of {choice.n_layers}, read with norm {choice.norm}"
    yield "because", choice.reason
    if choice.outcome == "layer" and choice.usable is not None and choice.settings.get("rule", choice.rule) is None:
        order = ", ".join(RULES)
        yield "chosen by", f"rule {choice.rule}, the first of {order} to give a usable layer below the last, and not by construction"
    if choice.layer is not None:
        yield from _stability(choice)
    if choice.layer is not None and choice.skill is not None:
        whole = "" if choice.final_skill is None else f"; the final policy's is {nats(choice.final_skill)}"
        yield "its policy", f"gives the text {nats(choice.skill)} a token over guessing{whole}"
    agree, differ = _other_rules(choice)
    if choice.layer is not None:
        yield "rules that agree", enough(agree, 8) or "none"
    yield "other rules", enough(differ, 8) or "none"
    for text in choice.against:
        yield "against it" if choice.layer is not None else "why none", text
    if choice.diagnosis is not None:
        yield "diagnosis", choice.diagnosis
    yield "next", _next(choice)


def _stability(choice: LayerChoice) -> Iterator[tuple[str, str]]:
    if pd.isna(choice.frequency):
        yield "stability", "not known: one sample cannot be resampled"
        return
    own = choice.candidates[(choice.candidates["rule"] == choice.rule) & ~choice.candidates["chosen"]]
    others = [f"{_layer(row.layer)} in {percent(float(row.frequency))}" for row in own.itertuples()]
    rest = f"; then {enough(others, 3)}" if others else ""
    by_itself = f", {END}" if choice.outcome == "open" else ""
    yield "stability", f"{percent(choice.frequency)} of resamples of the {choice.samples} samples give this layer{by_itself}{rest}"


def _other_rules(choice: LayerChoice) -> tuple[list[str], list[str]]:
    """The rules that name the same layer, and what the others say; a rule that no half of the resamples supports is undetermined."""
    agree, differ = [], []
    answers = choice.candidates[choice.candidates["chosen"] & (choice.candidates["rule"] != choice.rule)]
    for row in answers.itertuples():
        layer, frequency = row.layer, float(row.frequency)
        if row.open:
            differ.append(f"{row.rule} {_layer(layer)} (open: {END})")
        elif frequency < NAMED:
            differ.append(f"{row.rule} undetermined ({_layer(layer)} in {percent(frequency)}, under {percent(NAMED)})")
        elif choice.layer is not None and not pd.isna(layer) and layer == choice.layer:
            agree.append(f"{row.rule} ({percent(frequency)})")
        else:
            usable = pd.isna(layer) or choice.usable is None or layer in choice.usable
            differ.append(f"{row.rule} {_layer(layer)} ({percent(frequency)}{'' if usable else ', not usable'})")
    return agree, differ


def _next(choice: LayerChoice) -> str:
    if choice.norm not in FORWARD_NORMS:
        return f"training does not know norm {choice.norm}: analyse with norm none or final, then layerlens select RUN"
    if choice.layer is not None:
        return f"layerlens train ... --internal_layer {choice.layer} --internal_norm {choice.norm} --internal_rollouts N"
    if choice.diagnosis is not None:
        return "layerlens analyze MODEL PROMPTS --norm final --out RUN, then layerlens select RUN"
    if choice.outcome == "undetermined":
        return "analyse more samples, or name a layer yourself: layerlens train ... --internal_layer L"
    return "another norm, another --rule, or name a layer yourself: layerlens train ... --internal_layer L"


def _layer(layer: object) -> str:
    return "no layer" if pd.isna(layer) else f"layer {layer}"
