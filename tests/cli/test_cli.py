"""The command line: what it prints, what it writes, and what it returns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tightrope.cli import VERBS, main
from tightrope.report.model import SCHEMA

SCRIPTS = Path(__file__).parent.parent / "scripts"
FACTORIES = SCRIPTS / "factories.py"


@pytest.fixture
def tightrope(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Call the command line in this process: exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tightrope", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code
        assert isinstance(code, int)
        return code, *capfd.readouterr()

    return call


def test_help_names_every_verb_and_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['tightrope', '--help']\nfrom tightrope.cli import main\n"
        "try: main()\nexcept SystemExit: pass"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in text for verb in VERBS) and "Exit codes" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, tightrope) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = tightrope(verb, "--help")
    assert code == 0 and out.startswith("Usage: ")


@pytest.mark.parametrize(("factory", "code"), [("healthy", 0), ("subject", 0), ("loader", 0), ("sick", 1)])
def test_check_returns_0_for_health_and_1_for_findings(factory: str, code: int, tightrope) -> None:  # type: ignore[no-untyped-def]
    found, out, _ = tightrope("check", f"{FACTORIES}:{factory}")
    assert found == code
    assert ("init-too-small" in out) == (factory == "sick")


def test_check_writes_the_report_as_data_and_as_a_page(tmp_path: Path, tightrope) -> None:  # type: ignore[no-untyped-def]
    data, page = tmp_path / "r.json", tmp_path / "r.html"
    code, out, _ = tightrope("check", f"{FACTORIES}:sick", "--json", str(data), "--html", str(page), "--format", "json")
    assert code == 1
    written = json.loads(data.read_text())
    assert json.loads(out) == written and written["schema"] == SCHEMA
    assert {"check", "severity", "location", "evidence"} <= set(written["findings"][0])
    # The line where the layers are built is the line to change.
    number = int(written["findings"][0]["location"].rpartition(":")[2])
    assert "nn.Linear(32, 32)" in FACTORIES.read_text().splitlines()[number - 1]
    assert page.read_text().startswith("<!")


def test_a_module_on_the_current_path_is_found(monkeypatch: pytest.MonkeyPatch, tightrope) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(SCRIPTS)
    assert tightrope("check", "factories:healthy", "--format", "none")[0] == 0


def test_predict_says_in_words_whether_signal_and_gradient_stay_in_range(tightrope) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = tightrope("predict", f"{FACTORIES}:meta")
    assert code == 0
    assert "the signal stays in range" in out and "the gradient stays in range" in out and "over 13 layers" in out
    code, out, _ = tightrope("predict", f"{FACTORIES}:meta_sick")
    assert code == 1
    assert "the signal dies out" in out and "the gradient dies out" in out


def test_fix_repairs_the_live_model(tightrope) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = tightrope("fix", f"{FACTORIES}:sick")
    assert code == 0
    before, after = out.split("\nafter\n")
    assert "init-too-small" in before and "No finding" in after
    assert "tightrope.initialize(model, inputs)" in after


def test_lab_lists_its_experiments_and_refuses_what_it_cannot_do(tightrope) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = tightrope("lab", "--list")
    assert code == 0 and "signal-cascade" in out.splitlines()
    assert tightrope("lab")[0] == 2
    code, _, err = tightrope("lab", "no-such-law")
    assert code == 2 and "there is no such experiment" in err


def test_explain_prints_a_page_and_the_list(tightrope) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = tightrope("explain", "unscaled-input")
    assert code == 0 and "Law " in out and "References" in out
    code, out, _ = tightrope("explain", "--list")
    assert code == 0 and "unscaled-input" in out and "vanishing-gradient" in out
    code, out, _ = tightrope("explain", "--list", "--format", "json")
    assert "unscaled-input" in json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "nocolon"), "it is no factory's name"),
        (("check", "nowhere.py:build"), "there is no file nowhere.py"),
        (("check", "no.such.module:build"), "there is no module no.such.module"),
        (("check", f"{FACTORIES}:absent"), "has no absent"),
        (("check", f"{FACTORIES}:VALUE"), "VALUE is of type int"),
        (("check", f"{FACTORIES}:raises"), "it raised FileNotFoundError: weights.pt"),
        (("check", f"{FACTORIES}:no_model"), "it is (int)"),
        (("check", f"{FACTORIES}:bare"), "returns a model without data"),
        (("check", f"{FACTORIES}:no_parameters"), "it has no parameters"),
        (("predict", f"{FACTORIES}:bare"), "returns no batch"),
        (("check", f"{FACTORIES}:healthy", "--json", "/no/such/folder/r.json"), "write /no/such/folder/r.json"),
        (("explain", "no-such-check"), "there is no such check"),
        (("explain",), "name one check, or pass --list"),
        (("run", "nowhere.py"), "there is no such file"),
        (("run", "-m", "no.such.module"), "finds no module no.such.module"),
        (("run", "--record", "0", "x.py"), "no list of step numbers"),
        (("run", "--record", "a,b", "x.py"), "no list of step numbers"),
        (("run",), "Missing argument 'TARGET'"),
        (("dance",), "No such command 'dance'"),
    ],
)
def test_what_cannot_be_done_is_said_and_returns_2(arguments: tuple[str, ...], message: str, tightrope) -> None:  # type: ignore[no-untyped-def]
    code, out, err = tightrope(*arguments)
    assert code == 2
    assert message in " ".join((out + err).split())


def test_run_passes_the_scripts_output_and_options_through(tmp_path: Path, tightrope) -> None:  # type: ignore[no-untyped-def]
    data = tmp_path / "r.json"
    script = str(SCRIPTS / "mlp_dropout.py")
    code, out, err = tightrope("run", "--record", "1,3", "--json", str(data), script, "--steps", "4", "--record", "x")
    assert code == 0
    assert out.splitlines()[-1] == "x" and "tightrope" not in out
    assert "step 3 recorded" in err and "steps 1, 3" in err
    assert json.loads(data.read_text())["steps"] == [1, 3]


def test_run_of_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tightrope) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "trainer"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import sys, torch\nfrom . import __name__ as name\nw = torch.ones(3, requires_grad=True)\n"
        "(w * torch.randn(5, 3)).square().mean().backward()\nprint(name, sys.argv[1:])\n"
    )
    monkeypatch.chdir(tmp_path)
    code, out, _ = tightrope("run", "-m", "trainer", "--epochs", "3")
    assert out == "trainer ['--epochs', '3']\n" and code in (0, 1)


def test_run_gives_the_scripts_exit_code_and_still_reports(tightrope) -> None:  # type: ignore[no-untyped-def]
    code, out, err = tightrope("run", str(SCRIPTS / "broken.py"), "exit")
    assert code == 7 and out == "step 1\nstep 2\n" and "step 1" in err


def test_run_fix_repairs_while_training_and_prints_the_lines_to_change(tmp_path: Path, tightrope) -> None:  # type: ignore[no-untyped-def]
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
        "net = nn.Sequential(*[m for _ in range(10) for m in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))\n"
        "for p in net.parameters():\n    nn.init.normal_(p, std=0.02)\n"
        "optimizer = torch.optim.SGD(net.parameters(), 0.05)\n"
        "for _ in range(5):\n    x, y = 60 + 9 * torch.randn(64, 32), torch.randint(0, 4, (64,))\n"
        "    loss = nn.functional.cross_entropy(net(x), y)\n"
        "    optimizer.zero_grad()\n    loss.backward()\n    optimizer.step()\n    print(float(loss.detach()))\n"
    )
    assert tightrope("run", str(script))[0] == 1
    code, out, err = tightrope("run", "--fix", str(script))
    assert code == 0 and len(out.splitlines()) == 5
    # The data first, then, with them in place, the weights.
    changes = err[err.index("applied in memory") :]
    assert changes.index("standardize = ") < changes.index("tightrope.initialize(model, inputs)")
    assert "train.py:4]" in changes
