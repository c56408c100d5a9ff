"""Examples on data of one field each run, and say what their pages promise."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_breast_cancer_is_sure_where_it_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "breast_cancer.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "overconfident" in said
    before, after = (float(n) for n in re.findall(r"([\d.]+) nats before, ([\d.]+) after", said)[0])
    assert after < 0.7 * before
    wrong = [int(n) for n in re.findall(r"of patients: (\d+) of", said)]
    assert wrong[0] <= 1 and wrong[0] <= wrong[-1]  # the surest half
    assert float(re.findall(r"disagree ([\d.]+) times", said)[0]) > 5


def test_batch_effects_are_deleted_with_their_component(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "batch_effects.py"), run_name="__main__")
    said = capsys.readouterr().out
    together, alone = (line for line in said.splitlines()[1:3])
    shares = [int(re.findall(r"(\d+) %", line)[0]) for line in (together, alone)]
    unseen = [float(re.findall(r"0\.\d\d(?=  )", line)[-1]) for line in (together, alone)]
    assert shares[0] > 20 and shares[1] == 0
    assert unseen[1] > unseen[0] + 0.05
    assert "overconfident" in together
    rho = [float(n) for n in re.findall(r"rho (-?[\d.]+)", said)]
    assert rho[0] > 0.01 and rho[0] > rho[2] and abs(rho[1]) < 0.01
