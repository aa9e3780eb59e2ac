from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import nn

from autowu_hf import AutoLRSScheduler, MissingLossWarning, get_autolrs_schedule

OPTIONS = {"num_candidates": 4, "min_lr": 1e-4, "max_lr": 10.0}


class Bowl:
    """f(w) = (w - 3)^2 / 2 in SGD: the best LR is 1, and above 2 it diverges."""

    def __init__(self, steps: int, warm_up: int = 0, momentum: float = 0.1, **options) -> None:
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.5, momentum=momentum)
        self.scheduler = get_autolrs_schedule(self.optimizer, steps, warm_up, **{**OPTIONS, **options})
        self.seen: list[dict] = []

    def step(self, noise: float = 0.0) -> None:
        before = self.weight.detach().clone()
        drawn = torch.rand(())
        loss = ((self.weight - 3.0) ** 2).sum() / 2 + noise * (drawn - 0.5)
        self.optimizer.zero_grad()
        loss.backward()
        self.seen.append({"weight": before, "lr": self.optimizer.param_groups[0]["lr"], "drawn": float(drawn)})
        self.seen[-1]["momentum"] = copy.deepcopy(self.optimizer.state[self.weight].get("momentum_buffer"))
        self.optimizer.step()
        self.scheduler.step(loss)

    def run(self, steps: int, noise: float = 0.0) -> Bowl:
        for _ in range(steps):
            self.step(noise)
        return self


def test_every_candidate_starts_from_the_same_state_and_runs_at_its_own_lr():
    bowl = Bowl(201, first_stage=40).run(201)
    stage = bowl.scheduler.stages[0]
    result = bowl.scheduler.results[0]
    assert (stage.start, stage.candidate_steps, stage.train_steps) == (1, 10, 40)
    assert bowl.seen[0]["lr"] == 1e-4
    first = bowl.seen[stage.start]
    for i, lr in enumerate(result["lrs"]):
        begin = stage.start + i * stage.candidate_steps
        assert all(seen["lr"] == lr for seen in bowl.seen[begin : begin + stage.candidate_steps])
        for name in ("weight", "momentum"):
            assert torch.equal(bowl.seen[begin][name], first[name])
        assert bowl.seen[begin]["drawn"] == first["drawn"]
    trained = bowl.seen[stage.start + stage.search_steps]
    assert torch.equal(trained["weight"], first["weight"])
    assert torch.equal(trained["momentum"], first["momentum"])
    assert trained["drawn"] == first["drawn"]
    assert {seen["lr"] for seen in bowl.seen[stage.start + stage.search_steps : stage.end]} == {result["lr"]}


def test_it_tells_when_it_looks_and_how_many_steps_it_has_taken_back():
    bowl = Bowl(201, first_stage=40)
    stage = bowl.scheduler.stages[0]
    for step in range(1, stage.end):
        bowl.step()
        done = max(step - stage.start, 0)
        assert bowl.scheduler.is_looking == (step >= stage.start and done < stage.search_steps)
        assert bowl.scheduler.num_steps_lost == min(done // stage.candidate_steps * 10, stage.search_steps)
    resumed = Bowl(201, first_stage=40).scheduler
    resumed.load_state_dict(bowl.scheduler.state_dict())
    assert resumed.num_steps_lost == stage.search_steps


def test_the_best_candidate_is_used_and_the_steps_are_those_of_the_run():
    bowl = Bowl(201, momentum=0.0, num_candidates=10, first_stage=100).run(201)
    (result,) = bowl.scheduler.results
    assert 0.3 < result["lr"] < 2.0
    assert result["lr"] == result["lrs"][result["forecasts"].index(min(result["forecasts"]))]
    assert torch.allclose(bowl.weight, torch.full((3,), 3.0, dtype=torch.float64))
    assert bowl.scheduler.last_epoch == len(bowl.seen) == 201


def test_losses_that_are_no_numbers_never_win(caplog):
    bowl = Bowl(101, min_lr=0.5, max_lr=1e200, first_stage=40).run(101)
    forecasts = bowl.scheduler.results[0]["forecasts"]
    assert sum(map(math.isnan, forecasts)) >= 2
    assert math.isfinite(forecasts[bowl.scheduler.results[0]["lrs"].index(bowl.scheduler.results[0]["lr"])])
    assert bool(bowl.weight.isfinite().all())
    bowl = Bowl(101, min_lr=1e100, max_lr=1e200, first_stage=40).run(40)
    assert bowl.scheduler.results == []
    bowl.run(1)
    assert bowl.scheduler.results[0]["lr"] == min(bowl.scheduler.results[0]["lrs"])
    assert "no candidate's losses were finite" in caplog.text


@pytest.mark.parametrize("saved", [1, 11, 20, 40, 41, 42, 81, 161])
def test_a_run_goes_on_exactly_from_any_step(saved, tmp_path):
    whole = Bowl(201, first_stage=40).run(saved, noise=0.5)
    state = {
        "weight": whole.weight.detach().clone(),
        "optimizer": copy.deepcopy(whole.optimizer.state_dict()),
        "scheduler": whole.scheduler.state_dict(),
        "rng": torch.get_rng_state(),
    }
    torch.save(state, tmp_path / "state.bin")
    whole.run(201 - saved, noise=0.5)
    state = torch.load(tmp_path / "state.bin", weights_only=True)
    part = Bowl(201, first_stage=40)
    with torch.no_grad():
        part.weight.copy_(state["weight"])
    part.optimizer.load_state_dict(state["optimizer"])
    part.scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"])
    part.run(201 - saved, noise=0.5)
    assert part.scheduler.results == whole.scheduler.results
    assert [seen["lr"] for seen in part.seen] == [seen["lr"] for seen in whole.seen[saved:]]
    assert torch.equal(part.weight, whole.weight)


def test_a_run_that_goes_on_with_more_steps_plans_the_rest_anew():
    bowl = Bowl(121, first_stage=40).run(50)
    longer = Bowl(400, first_stage=40)
    longer.scheduler.load_state_dict(bowl.scheduler.state_dict())
    assert longer.scheduler.stages[0] == bowl.scheduler.stages[0]
    assert longer.scheduler.stages[-1].end == 400
    assert longer.scheduler.stages[1].train_steps == 2 * longer.scheduler.stages[0].train_steps
    bowl = Bowl(121, first_stage=40).run(50)
    shorter = Bowl(100, first_stage=40)
    shorter.scheduler.load_state_dict(bowl.scheduler.state_dict())
    assert shorter.scheduler.stages == bowl.scheduler.stages[:1]
    early = Bowl(400, warm_up=20).run(3)
    later = Bowl(800, warm_up=20)
    later.scheduler.load_state_dict(early.scheduler.state_dict())
    assert later.scheduler.stages[-1].end == 800


def test_without_the_state_to_go_back_to_the_search_is_given_up(caplog):
    bowl = Bowl(201, first_stage=40).run(35)
    state = {**bowl.scheduler.state_dict(), "start": None}
    other = Bowl(201, first_stage=40)
    other.scheduler.load_state_dict(state)
    assert "the search is given up" in caplog.text
    assert other.scheduler.phase == "train"
    assert other.optimizer.param_groups[0]["lr"] in bowl.scheduler.candidate_lrs[:3]
    other.run(166)
    assert len(other.scheduler.results) == len(other.scheduler.stages) - 1


def test_a_warm_up_grows_to_the_optimizers_own_lr():
    bowl = Bowl(120, warm_up=10, first_stage=40).run(11)
    assert [seen["lr"] for seen in bowl.seen[:10]] == pytest.approx([0.05 * i for i in range(10)])
    assert bowl.scheduler.phase == "search"
    assert bowl.seen[10]["lr"] == bowl.scheduler.candidate_lrs[0]


def test_groups_keep_their_ratios():
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.05}], lr=0.5)
    scheduler = get_autolrs_schedule(optimizer, 200)
    for _ in range(30):
        optimizer.step()
        scheduler.step(1.0)
        a, b = scheduler.get_last_lr()
        assert b == pytest.approx(0.1 * a)


def test_full_stages_forecast_from_the_validation_loss():
    calls = []

    def validation_loss() -> float:
        calls.append(len(bowl.seen))
        return abs(math.log10(bowl.optimizer.param_groups[0]["lr"] / 2e-3))  # lowest where the training loss is not

    bowl = Bowl(241, first_stage=40, longest_stage=40, validation_loss=validation_loss)
    assert [stage.is_full for stage in bowl.scheduler.stages] == [False, True, True]
    bowl.run(241)
    assert len(calls) == 2 * 4 * 10
    assert calls[:11] == [*range(82, 92), 92]
    first, second, third = bowl.scheduler.results
    for result in (second, third):
        assert result["forecasts"] == pytest.approx([abs(math.log10(lr / 2e-3)) for lr in result["lrs"]])
    assert first["lr"] > 1e-2 > second["lr"] == third["lr"] > 4e-4


def test_the_log_says_what_was_found(caplog):
    caplog.set_level(logging.INFO, "autowu_hf")
    bowl = Bowl(201, first_stage=40).run(41)
    assert f"learning rate {bowl.scheduler.results[0]['lr']:.1e} for the next 40 steps, forecast loss" in caplog.text


def test_without_losses_it_says_so():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scheduler = get_autolrs_schedule(optimizer, 200)
    with pytest.warns(MissingLossWarning, match="AutoLRS saw no loss in this step"):
        for _ in range(5):
            optimizer.step()
            scheduler.step()


def test_foreign_states_and_optimizers_are_refused():
    bowl = Bowl(201)
    with pytest.raises(ValueError, match="not a state of AutoLRSScheduler"):
        bowl.scheduler.load_state_dict({"last_epoch": 3})
    with pytest.raises(ValueError, match="stepped AutoLRS 2 times per optimizer step, this one does it 1 times"):
        bowl.scheduler.load_state_dict({**bowl.scheduler.state_dict(), "ticks_per_step": 2})

    class DeepSpeedZeroOptimizer(torch.optim.SGD):
        pass

    with pytest.raises(ValueError, match="the start of a search: DeepSpeed's DeepSpeedZeroOptimizer may keep"):
        AutoLRSScheduler(DeepSpeedZeroOptimizer([nn.Parameter(torch.ones(1))], lr=0.1), 200)
