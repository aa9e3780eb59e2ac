from __future__ import annotations

import copy
import importlib
import pickle
import pickletools
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
import torch
import transformers
from stand_ins import diffusers_stands_in
from tiny import trainer_for
from transformers import HfArgumentParser, SchedulerType, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer import DEFAULT_CALLBACKS
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

import autowu_hf
from autowu_hf import AutoWUCallback, AutoWUScheduler
from autowu_hf.registration import _add_member, _remove_member


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def python(code: str) -> str:
    """Runs code in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_enum_knows_autowu_in_every_way():
    member = SchedulerType("autowu")
    assert member is SchedulerType.AUTOWU is SchedulerType["AUTOWU"]
    assert (member.name, member.value, str(member.value)) == ("AUTOWU", "autowu", "autowu")
    assert member == "autowu"
    assert isinstance(member, SchedulerType)
    assert member in list(SchedulerType)
    assert len(SchedulerType) == len(list(SchedulerType))
    assert copy.deepcopy(member) is member
    assert pickle.loads(pickle.dumps(member)) is member
    assert SchedulerType("cosine") is SchedulerType.COSINE


def test_register_is_idempotent():
    before = (list(SchedulerType), dict(TYPE_TO_SCHEDULER_FUNCTION), CallbackHandler.add_callback)
    autowu_hf.register()
    assert (list(SchedulerType), dict(TYPE_TO_SCHEDULER_FUNCTION), CallbackHandler.add_callback) == before


def test_import_is_quiet_and_unregister_leaves_no_trace():
    assert [DefaultFlowCallback] == DEFAULT_CALLBACKS
    code = """
import sys, torch
from accelerate import Accelerator
from transformers import SchedulerType
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_callback import CallbackHandler

def state():
    return (
        dict(vars(SchedulerType)), list(SchedulerType), SchedulerType._member_names_[:],
        dict(SchedulerType._member_map_),
        dict(SchedulerType._value2member_map_), list(getattr(SchedulerType, "_hashable_values_", [])),
        dict(TYPE_TO_SCHEDULER_FUNCTION), dict(vars(CallbackHandler)), dict(vars(Accelerator)), sys.meta_path[:],
    )

before = state()
import autowu_hf
from accelerate.state import AcceleratorState, PartialState
assert not PartialState._shared_state and not AcceleratorState._shared_state
assert not torch.distributed.is_initialized() and not torch.cuda.is_initialized()
for name in ("gpytorch", "matplotlib", "transformers.trainer", "diffusers"):
    assert name not in sys.modules, name
autowu_hf.get_autowu_schedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1), 10)
assert not PartialState._shared_state

assert "autowu" in [t.value for t in SchedulerType] and state() != before
autowu_hf.unregister()
autowu_hf.unregister()
assert state() == before

import transformers
from transformers import modelcard
def trainers():
    return dict(vars(transformers.Trainer)), modelcard.extract_hyperparameters_from_trainer

before = trainers()
autowu_hf.register()
autowu_hf.integrations.trainer_hooks._install_trainer()  # as the first Trainer does
assert all(a != b for a, b in zip(trainers(), before))
autowu_hf.unregister()
assert trainers() == before
try:
    SchedulerType("autowu")
except ValueError:
    print("gone")
autowu_hf.register()
assert SchedulerType("autowu") in TYPE_TO_SCHEDULER_FUNCTION
"""
    assert python(code) == "gone"


@pytest.mark.parametrize("comes", ["before", "after"])
def test_diffusers_knows_the_names_before_and_after_it_is_imported(comes):
    with diffusers_stands_in():
        autowu_hf.unregister()
        if comes == "before":
            importlib.import_module("diffusers.optimization")
        autowu_hf.register()
        autowu_hf.register()
        assert ("diffusers" in sys.modules) is (comes == "before")
        diffusers = importlib.import_module("diffusers.optimization")
        member = diffusers.SchedulerType("autowu")
        assert member is diffusers.SchedulerType.AUTOWU is copy.deepcopy(member) is pickle.loads(pickle.dumps(member))
        for name in ("autowu", member):
            schedule = diffusers.get_scheduler(
                name, optimizer=optimizer(), num_warmup_steps=20, num_training_steps=100, num_cycles=2, power=0.5
            )
            assert isinstance(schedule, AutoWUScheduler)
            assert (schedule.num_training_steps, schedule.num_warmup_steps) == (100, 20)
        with pytest.raises(ValueError, match="last_epoch must be -1 for the schedule 'autowu', got 7; it goes on from"):
            diffusers.get_scheduler(name, optimizer(), None, 0, 100, last_epoch=7)
        assert diffusers.get_scheduler(name, optimizer(), None, 500, 100).num_warmup_steps == 0  # as its scripts ask
        autowu_hf.unregister()
        assert [m.value for m in diffusers.SchedulerType] == ["linear", "constant"]
        assert len(diffusers.TYPE_TO_SCHEDULER_FUNCTION) == 2
        with pytest.raises(ValueError, match="autowu"):
            diffusers.get_scheduler("autowu", optimizer(), None, 0, 100)


@pytest.mark.once
def test_works_without_transformers():
    code = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "transformers" else found(name, *rest)
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import torch
from accelerate import Accelerator
import autowu_hf
accelerator = Accelerator(cpu=True)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = autowu_hf.get_autowu_schedule(optimizer, 10)
model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
for _ in range(10):
    accelerator.backward(model(torch.ones(2)).pow(2).sum())
    optimizer.step()
    scheduler.step()
assert len(scheduler.scheduler.losses) == scheduler.scheduler.switch_step > 2 and scheduler.get_last_lr() == [0.0]
for name in ("AutoWUCallback", "SalsaTrainer", "AutoLRSValidationCallback"):
    try:
        getattr(autowu_hf, name)
    except ImportError as error:
        assert str(error).startswith(f"autowu_hf.{name} is a part of transformers' Trainer, which is not installed; ")
from autowu_hf import run
for option, said in ((("--schedule", "autowu"), "neither is installed"), (("--suggest-lr",), "is not installed")):
    try:
        run.main([*option, "script.py"])
    except SystemExit as end:
        assert said in end.code, end.code
run.main(["-m", "this"])
autowu_hf.unregister()
assert "transformers" not in sys.modules
print("alone")
"""
    assert python(code).endswith("alone")


def test_get_scheduler_builds_it_with_its_options():
    options = {"max_lr": 0.5, "preset": "paper", "steps_per_epoch": 7}
    scheduler = get_scheduler("autowu", optimizer(), 0, 100, scheduler_specific_kwargs=options)
    assert isinstance(scheduler, AutoWUScheduler)
    assert scheduler.settings.max_lr == 0.5
    assert scheduler.settings.gp_engine == "gpytorch"
    assert scheduler.steps_per_epoch == 7
    assert scheduler.warmup_cap == 50
    assert get_scheduler("autowu", optimizer(), 20, 100).warmup_cap == 20


def test_an_unknown_option_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'warmup_ratio'; pick one of steps_per_epoch, preset, min_lr, max_lr, .*"):
        get_scheduler("autowu", optimizer(), 0, 100, scheduler_specific_kwargs={"warmup_ratio": 0.1})


@pytest.mark.parametrize(
    ("name", "known"), [("rex", "sampling, steps_per_epoch"), ("autolrs", "min_lr, .*"), ("salsa", "initial_lr, .*")]
)
def test_an_unknown_option_of_the_other_schedules_lists_the_valid_ones(name, known):
    with pytest.raises(ValueError, match=f"'gamma'; pick one of {known}$"):
        get_scheduler(name, optimizer(), 0, 200, scheduler_specific_kwargs={"gamma": 0.1})


@pytest.mark.parametrize("name", ["autowu", "rex", "autolrs", "salsa"])
def test_the_command_line_takes_it(name):
    parser = HfArgumentParser(TrainingArguments)
    command = ["--output_dir", "x", "--lr_scheduler_type", name, "--lr_scheduler_kwargs", '{"max_lr": 0.5}']
    (args,) = parser.parse_args_into_dataclasses(command)
    assert args.lr_scheduler_type is SchedulerType(name)
    assert args.lr_scheduler_kwargs == {"max_lr": 0.5}


COSINE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import hashlib, os, tempfile, torch
from tiny import trainer_for
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    trainer = trainer_for(folder, lr_scheduler_type="cosine", num_train_epochs=3)
    trainer.train()
    files = os.listdir(folder)
weights = b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())
history = [e for e in trainer.state.log_history if "loss" in e]
has_it = "autowu_hf" in sys.modules
digest = hashlib.sha256(weights + repr(history).encode()).hexdigest()
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory) -> list[str]:
    """What a process prints that never has the package: of a cosine run, and of the arguments of an autowu run."""
    folder = tmp_path_factory.mktemp("arguments")
    trainer_for(folder).save_model()
    file = folder / "training_args.bin"
    assert torch.load(file, weights_only=False).lr_scheduler_type is SchedulerType("autowu")
    code = f"""
{COSINE}
print(has_it, digest)
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "autowu_hf":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
args = torch.load({str(file)!r}, weights_only=False)
assert type(args.lr_scheduler_type) is str
print(args.lr_scheduler_type, args.to_dict()["lr_scheduler_type"])
"""
    return python(code).splitlines()[-2:]


def test_training_args_load_without_the_package_and_with_it(without):
    assert without[1] == "autowu autowu"


def test_a_pickled_member_calls_nothing_that_scanners_of_shared_files_refuse():
    found = [arg for op, arg, _ in pickletools.genops(pickle.dumps(SchedulerType("autowu"), 2)) if op.name == "GLOBAL"]
    assert found == ["inspect getattr_static", "transformers.trainer_utils SchedulerType"]


def test_a_cosine_run_is_bit_for_bit_what_it_is_without_the_import(without):
    here: dict[str, object] = {}
    exec(COSINE, here)
    assert here["has_it"]
    assert without[0] == f"False {here['digest']}"
    assert not any(name.startswith("autowu") for name in here["files"])


def test_every_trainer_has_one_callback_and_the_users_takes_its_place(tmp_path: Path):
    def callbacks_of(trainer: transformers.Trainer) -> list:
        return [c for c in trainer.callback_handler.callbacks if isinstance(c, AutoWUCallback)]

    automatic = trainer_for(tmp_path)
    assert len(callbacks_of(automatic)) == 1
    own = AutoWUCallback(plot=False)
    trainer = trainer_for(tmp_path, callbacks=[own])
    assert callbacks_of(trainer) == [own]
    names = [type(c).__name__ for c in trainer.callback_handler.callbacks]
    assert names[:2] == ["DefaultFlowCallback", "AutoWUCallback"]
    other = AutoWUCallback(plot=False)
    trainer.add_callback(other)
    assert callbacks_of(trainer) == [other]
    trainer.remove_callback(AutoWUCallback)
    assert callbacks_of(trainer) == []


def test_members_can_be_added_to_and_removed_from_any_enum_of_strings():
    class Colour(str, Enum):
        RED = "red"

    before = dict(vars(Colour))
    blue = _add_member(Colour, "blue")
    assert Colour("blue") is Colour.BLUE is Colour["BLUE"] is blue
    assert [c.value for c in Colour] == ["red", "blue"]
    assert "BLUE" in Colour.__members__
    assert _add_member(Colour, "blue") is blue
    _remove_member(Colour, "blue")
    assert dict(vars(Colour)) == before
    assert list(Colour) == [Colour.RED]
