from __future__ import annotations

import argparse
import configparser
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
from run_programs import command, script_alone
from torchrun import torchrun
from transformers import SchedulerType

from autowu_hf import run
from autowu_hf.runtime.methods import METHODS

SCRIPTS = Path(__file__).parent / "scripts"
RUN = ("-m", "autowu_hf.run")
HAS_TRLS_ACCELERATE = tuple(int(part) for part in accelerate.__version__.split(".")[:2]) >= (1, 10)


def python(*arguments: str, folder: Path) -> str:
    """What a new interpreter prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def check_fixed_choices(folder: Path, named: bool = True, other: str = "LambdaLR", processes: int = 1) -> None:
    seen = json.loads((folder / "seen.json").read_text())
    assert seen["scheduler"] == "AutoWUScheduler"
    assert seen["processes"] == processes
    assert seen["name"] == "__main__"
    assert seen["file"] == str(SCRIPTS / "fixed_choices.py")
    assert seen["argv"] == [*(ARGUMENTS if named else UNNAMED)]
    assert seen["other"] == other
    assert seen["path"] == str(SCRIPTS)
    assert seen["lrs"][0] < 1e-4
    assert max(seen["lrs"]) > 1e-3


UNNAMED = (str(SCRIPTS / "fixed_choices.py"), "--output", "seen.json")
ARGUMENTS = (*UNNAMED, "--lr_scheduler_type", "autowu")
EVERY = ("--schedule", "autowu")


def test_a_script_with_fixed_choices_runs_unchanged(tmp_path):
    refusal = script_alone(*ARGUMENTS, folder=tmp_path, fails=True)
    assert "invalid" in refusal
    assert "autowu" in refusal
    command(*ARGUMENTS, folder=tmp_path)
    check_fixed_choices(tmp_path)


@pytest.mark.once
def test_under_torchrun(tmp_path):
    torchrun(*RUN, *ARGUMENTS, folder=tmp_path)
    check_fixed_choices(tmp_path, processes=2)


def test_every_schedule_is_replaced_under_accelerate_launch(tmp_path):
    said = python("-m", "accelerate.commands.launch", "--cpu", *RUN, *EVERY, *UNNAMED, folder=tmp_path)
    check_fixed_choices(tmp_path, named=False, other="AutoWUScheduler")
    assert said.count("--schedule: autowu takes the place of") == 2
    assert 'takes the place of get_scheduler("linear")' in said
    assert "the place of get_cosine_schedule_with_warmup(); its num_warmup_steps of 10 are left out" in said


@pytest.mark.once
def test_what_a_command_launches_runs_the_same_way(tmp_path):
    said = command(*EVERY, "accelerate", "launch", "--cpu", *ARGUMENTS, folder=tmp_path)
    check_fixed_choices(tmp_path, other="AutoWUScheduler")
    assert "replaced nothing" not in said


def test_a_trainer_script_runs_unchanged(tmp_path):
    options = ("--output_dir", "output", "--max_steps", "20", "--report_to", "none", "--use_cpu", "True")
    command(str(SCRIPTS / "plain_trainer.py"), "--lr_scheduler_type", "autowu", *options, folder=tmp_path)
    assert json.loads((tmp_path / "output" / "autowu.json").read_text())["step"] == 20
    (tmp_path / "output" / "autowu.json").unlink()
    command(str(SCRIPTS / "plain_trainer.py"), *options, folder=tmp_path)
    assert not (tmp_path / "output" / "autowu.json").exists()


@pytest.mark.parametrize("given", [(), ("--lr_scheduler_type", "cosine_with_min_lr", "--warmup_steps", "30")])
def test_a_trainer_script_that_names_no_schedule_or_another_gets_the_one_asked_for(tmp_path, given):
    options = ("--output_dir", "output", "--max_steps", "20", "--report_to", "none", "--use_cpu", "True", *given)
    said = command(*EVERY, str(SCRIPTS / "plain_trainer.py"), *options, folder=tmp_path)
    assert json.loads((tmp_path / "output" / "autowu.json").read_text())["step"] == 20
    name = given[1] if given else "linear"
    assert said.count(f'autowu takes the place of lr_scheduler_type="{name}" of TrainingArguments') == 1
    assert ("its warmup_steps of 30" in said) is bool(given)
    assert "replaced nothing" not in said


def test_schedules_that_are_not_replaced_are_named(tmp_path):
    (tmp_path / "own.py").write_text(
        "import sys, torch\noptimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)\n"
        "for _ in range(2):\n    torch.optim.lr_scheduler.StepLR(optimizer, 10)\nsys.exit(0)\n"
    )
    said = command("--schedule=autowu", "own.py", folder=tmp_path)
    assert said.count("leaves torch's StepLR as it is") == 1
    assert said.count("--schedule autowu has replaced nothing") == 1


@pytest.mark.once
def test_a_module_runs_as_main_from_the_current_folder(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "job.py").write_text(
        "import sys\nfrom transformers import SchedulerType\n"
        "print(__name__, sys.argv[1:], SchedulerType('autowu').value)"
    )
    assert "__main__ ['--a', '1'] autowu" in command("-m", "package.job", "--a", "1", folder=tmp_path)


@pytest.mark.once
def test_trl_takes_the_flag(tmp_path):
    if importlib.util.find_spec("trl") is None or not HAS_TRLS_ACCELERATE:
        pytest.skip("TRL is not installed, or for a newer accelerate")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "<pad>": 1, "<unk>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "model")
    config = GPT2Config(vocab_size=5, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=0, pad_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join('{"text": "a b a b"}\n' for _ in range(32)))
    command(
        *(*EVERY, "trl", "sft", "--lr_scheduler_type", "rex", "--model_name_or_path", "model"),
        *("--dataset_name", "./data", "--output_dir", "output", "--max_steps", "12", "--max_length", "16"),
        *("--report_to", "none", "--use_cpu", "True", "--bf16", "False", "--per_device_train_batch_size", "4"),
        folder=tmp_path,
    )
    assert json.loads((tmp_path / "output" / "autowu.json").read_text())["step"] == 12


@pytest.fixture
def _extended_choices():
    original = argparse._ActionsContainer.add_argument
    run._extend_choices()
    run._extend_choices()
    yield
    argparse._ActionsContainer.add_argument = original


@pytest.mark.usefixtures("_extended_choices")
def test_only_choices_of_schedules_are_extended():
    parser = argparse.ArgumentParser()
    for name, choices in (
        ("--schedule", ["linear", "cosine"]),
        ("--member", (SchedulerType.LINEAR, SchedulerType.COSINE)),
        ("--kernel", ["linear", "rbf"]),
        ("--known", ["linear", "cosine", *METHODS]),
        ("--number", range(3)),
    ):
        parser.add_argument(name, choices=choices)
    choices = {action.dest: action.choices for action in parser._actions}
    assert choices["schedule"] == ["linear", "cosine", *METHODS]
    assert {"autowu", "rex", "autolrs", "salsa"} <= {*choices["schedule"]}
    assert choices["member"] == [SchedulerType.LINEAR, SchedulerType.COSINE, *METHODS]
    assert choices["kernel"] == ["linear", "rbf"]
    assert choices["known"] == ["linear", "cosine", *METHODS]
    assert choices["number"] == range(3)
    assert parser.parse_args(["--schedule", "autowu"]).schedule == "autowu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-thing"], "neither a file nor an installed Python command"),
        (["no=thing"], "'no=thing' is neither a file"),
        (["-m"], "-m needs the name of a module"),
        ([*EVERY], "--schedule autowu needs a script, a module or a command"),
        (["--suggest-lr"], "--suggest-lr needs a script, a module or a command"),
        ([*EVERY, "--suggest-lr", "script.py"], "'--suggest-lr' is no option here; give one of --suggest-lr and"),
        (["--sugest-lr", "script.py"], "'--sugest-lr' is no option here"),
        (["--schedule", "cosine", "script.py"], "--schedule is 'cosine', but must be one of .*autowu, rex"),
    ],
)
def test_nothing_to_run_is_an_error(arguments, message, monkeypatch):
    monkeypatch.setattr(run, "_extend_choices", lambda: None)
    monkeypatch.setattr(run, "_extend_accelerate_launch", lambda: None)
    monkeypatch.setattr(sys, "argv", ["autowu-run"])
    with pytest.raises(SystemExit, match=message):
        run.main(arguments)


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0)])
def test_usage(arguments, code, capsys):
    with pytest.raises(SystemExit) as end:
        run.main(arguments)
    assert end.value.code == code
    assert "accelerate launch -m autowu_hf.run script.py" in capsys.readouterr().out


def test_there_is_a_console_script():
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    assert config["options.entry_points"]["console_scripts"].strip() == "autowu-run = autowu_hf.run:main"
    assert callable(run.main)
