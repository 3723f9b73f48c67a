"""Break the code in one place after another, and check that the tests named for each place fail.

    all mutations, one after another: takes minutes
    python -m scripts.mutations --only "minimum over heads in place of their mean"
    python -m scripts.mutations --list > docs/mutations.md

Each row of `MUTATIONS` replaces one piece of one file, in a copy of the tree, and runs its tests there. Exit code 1
if a change survives them, if a piece is not found exactly once, or if the tests do not run.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = ("results", "runs")  # of the root; dreamer_mpc has a folder named runs, too
REFERENCE_CURVES = "results/reference"  # a part of the package
NEVER_COPIED = (".*", "__pycache__", "*.egg-info")
SECONDS = 240  # time limit of the tests of one row

REFERENCE = "tests/test_reference_update.py::test_two_updates_are_the_reference_s"
CLOSED_LOOP = "tests/test_closed_loop.py::test_actor_and_critic_reach_the_optimum"
CONTINUED = "tests/test_reference_update.py::test_two_updates_with_continuation_are_the_reference_s"
REINFORCE = "tests/test_reinforce.py::test_two_updates_are_the_reference_s"
NOT_FINITE = "tests/test_reinforce.py::test_a_batch_that_is_not_finite_changes_nothing_and_is_counted"
RESTORED = "tests/test_reinforce.py::test_a_restored_agent_goes_on_bit_for_bit"
ALIKE = "tests/test_v3_networks.py::test_outputs_with_equal_gradients_learn_equally"
EXPLORED = "tests/test_reinforce.py::test_exploration_of_the_policy_has_its_spread_around_the_plan"
EVALUATION = "tests/test_train_evaluation.py::"
MISFIT_ROW = "tests/test_compare.py::test_a_row_that_is_not_of_this_comparison_is_refused_by_its_line"
FAULTS = "tests/test_faults.py::"
ACCIDENTS = "tests/test_accidents.py::"
BESIDE = "tests/test_beside.py::test_a_run_is_the_same_though_its_training_is_always_faster_than_its_evaluations"


@dataclass(frozen=True)
class Mutation:
    """One change that must not go unnoticed."""

    name: str  # the fault, in words
    file: str
    old: str  # occurs once in the file
    new: str
    tests: tuple[str, ...]  # pytest ids of the tests that detect it


def agent(name: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, "dreamer_mpc/agents/dreamer.py", old, new, tests or (REFERENCE,))


def dynamics(name: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, "dreamer_mpc/agents/dynamics.py", old, new, tests or (REFERENCE,))


def reinforce(name: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, "dreamer_mpc/agents/reinforce.py", old, new, tests or (REINFORCE,))


def episodes(name: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, "dreamer_mpc/evaluation/record.py", old, new, tests)


def behavior(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, f"dreamer_mpc/{file}.py", old, new, tests or (REFERENCE,))


def world(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, f"dreamer_mpc/{file}.py", old, new, tests or (REFERENCE,))


def planner(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, f"dreamer_mpc/planners/{file}.py", old, new, tests)


def loop(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, f"dreamer_mpc/{file}.py", old, new, tests)


def measured(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    tests = tuple(f"tests/test_analysis_measures.py::{test}" for test in tests)
    return Mutation(name, f"dreamer_mpc/analysis/{file}.py", old, new, tests)


def restored(name: str, old: str, new: str, test: str) -> Mutation:
    return Mutation(name, "envs/dmc.py", old, new, (f"tests/test_snapshot.py::{test}",))


RETURNS = "lambda_return(rewards[:-1], values.mean(0)[1:], config.discount, config.return_lambda, continues)"
BOTH = (REFERENCE, CLOSED_LOOP)

MUTATIONS = [
    # learning of actor and critic
    dynamics("rewards shifted by one", RETURNS, RETURNS.replace("[:-1]", "[1:]"), *BOTH),
    dynamics("reward gradient cut", RETURNS, RETURNS.replace("rewards[:-1]", "rewards[:-1].detach()"), *BOTH),
    dynamics("value gradient cut", RETURNS, RETURNS.replace("mean(0)[1:]", "mean(0)[1:].detach()"), *BOTH),
    dynamics("minimum over heads in place of their mean", RETURNS, RETURNS.replace("mean(0)", "amin(0)"), *BOTH),
    dynamics("values shifted by one", RETURNS, RETURNS.replace("mean(0)[1:]", "mean(0)[:-1]"), *BOTH),
    dynamics(
        "critic fitted to the next state", "critic_loss(values[:, :-1], targets", "critic_loss(values[:, 1:], targets",
        *BOTH,
    ),
    dynamics("index of the bootstrap mask transposed", "batch.index.flatten()", "batch.index.t().flatten()"),
    agent(
        "actor not clipped", "clip_grad_norm_(self._parameters(name), self.optimizer.grad_clip)",
        'clip_grad_norm_(self._parameters(name), float("inf") if name == "actor" else self.optimizer.grad_clip)',
    ),
    agent(
        "world model not clipped", "clip_grad_norm_(self._parameters(name), self.optimizer.grad_clip)",
        'clip_grad_norm_(self._parameters(name), float("inf") if name == "world_model" else self.optimizer.grad_clip)',
    ),
    dynamics("actor minimises the return", "actor_loss(returns, weight)\n", "-actor_loss(returns, weight)\n", *BOTH),
    dynamics(
        "discount and lambda swapped", RETURNS,
        RETURNS.replace("config.discount, config.return_lambda", "config.return_lambda, config.discount"),
        *BOTH,
    ),
    dynamics(
        "imagined returns go on past an episode's end", RETURNS, RETURNS.replace(", continues)", ")"), CONTINUED,
        "tests/test_continuation.py::test_who_knows_where_episodes_end_stays_below_the_top_and_who_does_not_runs_over_it",
    ),
    dynamics(
        "imagination from an episode's last frame counts", "arrival(continues, batch.is_terminal.flatten())",
        "arrival(continues, batch.is_terminal.flatten() & False)", CONTINUED,
    ),
    behavior(
        "imagined states weighted by their own continuation", "agents/dynamics", "survival(continues[:-1])",
        "survival(continues)[1:]", CONTINUED,
    ),
    world(
        "frames that do not end an episode taken for its end", "world_model/gaussian", "(~batch.is_terminal)",
        "batch.is_terminal", CONTINUED,
    ),
    dynamics("own and shared targets of the heads exchanged", 'head_targets == "own"', 'head_targets != "own"'),
    dynamics("own targets with rewards shifted by one", "own_returns(rewards[:-1]", "own_returns(rewards[1:]"),
    dynamics(
        "imagination starts in another order than its frames", "states.detach().flatten(0, 1)",
        "states.detach().transpose(0, 1).flatten(0, 1)",
    ),
    behavior(
        "critic trained with the actor's learning rate", "agents/optimizers", '"critic": config.critic_lr',
        '"critic": config.actor_lr',
    ),
    behavior("Adam's epsilon left at its default", "agents/optimizers", '"eps": config.eps', '"eps": 1e-8'),
    agent(
        "a non-finite update is applied", "optimizer.found_inf = flag",
        "optimizer.found_inf = torch.zeros_like(flag)",
        "tests/test_agent.py::test_a_batch_that_is_not_finite_changes_nothing_and_is_counted",
    ),
    behavior(
        "policy inputs not detached", "planners/rollout",
        "model.policy(state.detach()).rsample()", "model.policy(state).rsample()",
    ),
    behavior("critic targets not detached", "agents/dynamics", "returns.detach())", "returns)"),
    behavior(
        "critic's mean divided by all frames, not those of the mask", "agents/dynamics",
        "mask.sum(dim=1).clamp_min(1)",
        "mask.shape[1]",
    ),
    behavior(
        "heads' losses averaged, not summed", "agents/dynamics", "clamp_min(1)).sum()", "clamp_min(1)).mean()"
    ),
    behavior("actor maximises only the first return", "agents/dynamics", "-returns.mean()", "-returns[0].mean()"),
    behavior(
        "own targets of another head", "agents/dynamics",
        "continues).transpose(0, 1)", "continues).transpose(0, 1).flip(0)"
    ),
    behavior("masks of another head", "networks/critic", ".movedim(-1, 0)\n", ".movedim(-1, 0).flip(0)\n"),
    behavior(
        "bootstrap mask inverted", "networks/critic",
        "heads) < bootstrap", "heads) > bootstrap",
        "tests/test_behavior.py::test_a_head_sees_its_share_of_the_frames",
    ),
    behavior("actor's minimum standard deviation left out", "networks/actor", " + self.min_std)", ")"),
    behavior("actor's mean not scaled", "networks/actor", "mean = self.mean_scale * torch", "mean = torch"),
    loop(
        "lambda and 1 - lambda exchanged", "agents/returns", "(1 - lambda_) * v + lambda_ * last",
        "lambda_ * v + (1 - lambda_) * last", "tests/test_returns.py", REFERENCE,
    ),
    loop(
        "returns end in a reward", "agents/returns", "last = v_tp1[-1]", "last = r_t[-1]",
        "tests/test_returns.py", REFERENCE,
    ),
    loop(
        "a state's own reward discounted", "agents/returns", "r + d * ((1 - lambda_) * v",
        "d * (r + (1 - lambda_) * v",
        "tests/test_returns.py", REFERENCE,
    ),
    loop(
        "imagined actions taken from the states after them", "agents/latents", "trace.deter[:-1], trace.stoch[:-1]",
        "trace.deter[1:], trace.stoch[1:]", REFERENCE,
    ),
    # learning of actor and critic by the score function
    reinforce(
        "v3: imagined rewards shifted by one", "lambda_return(rewards[1:], value[1:]",
        "lambda_return(rewards[:-1], value[1:]",
    ),
    reinforce(
        "v3: values of imagined returns shifted by one", "lambda_return(rewards[1:], value[1:]",
        "lambda_return(rewards[1:], value[:-1]",
    ),
    reinforce(
        "v3: returns stop by the continuation of the state before", "config.return_lambda, continues[1:])",
        "config.return_lambda, continues[:-1])",
    ),
    reinforce(
        "v3: imagined returns go on past an episode's end", "config.return_lambda, continues[1:])",
        "config.return_lambda)",
    ),
    reinforce(
        "v3: discount and lambda of imagined returns swapped", "value[1:], config.discount, config.return_lambda,",
        "value[1:], config.return_lambda, config.discount,",
    ),
    reinforce("v3: minimum over heads in place of their mean", "value = values.mean(0)", "value = values.amin(0)"),
    reinforce(
        "v3: weights without the continuation of the root", "arrival(continues[:-1], config.discount)",
        "arrival(continues[:-1], config.discount) / continues[0]",
    ),
    reinforce(
        "v3: weights by the continuation of the state after", "arrival(continues[:-1], config.discount)",
        "arrival(continues[1:], config.discount)",
    ),
    reinforce(
        "v3: weights discounted once too often", "torch.cat([continues[:1],",
        "torch.cat([discount * continues[:1],",
    ),
    reinforce("v3: advantage without the value of the state", "(returns - value[:-1]) /", "returns /"),
    reinforce("v3: advantage over the value of the next state", "(returns - value[:-1]) /", "(returns - value[1:]) /"),
    reinforce(
        "v3: advantage not scaled", "value[:-1]) / self.returns.scale(self._bounds)", "value[:-1])",
    ),
    reinforce(
        "v3: advantage scaled by the quantiles of the update before", "value[:-1]) / self.returns.scale(self._bounds)",
        "value[:-1]) / self.returns.scale(self.returns.bounds)",
    ),
    reinforce("v3: actor descends its advantage", "log_prob * advantage.detach()", "-log_prob * advantage.detach()"),
    reinforce("v3: entropy penalised", "+ entropy_scale * entropy", "- entropy_scale * entropy"),
    reinforce("v3: actor's steps not weighted", "-(weight * (log_prob", "-(1 * (log_prob"),
    reinforce(
        "v3: samples clipped before their density is taken", "sample(state, draws[len(samples)]))",
        "sample(state, draws[len(samples)]).clamp(-1, 1))",
    ),
    reinforce(
        "v3: imagination starts in another order than its frames", "states.detach().flatten(0, 1)",
        "states.detach().transpose(0, 1).flatten(0, 1)",
    ),
    reinforce("v3: values fitted to the returns of the state before", "logits[:, :-1]", "logits[:, 1:]"),
    reinforce(
        "v3: slow copy asked for the value of the next state", "self._slow_values(imagined[:-1])",
        "self._slow_values(imagined[1:])",
    ),
    reinforce(
        "v3: slow copy is no target", "returns, slow, self.config.slow_scale",
        "returns, slow, 0 * self.config.slow_scale",
    ),
    reinforce(
        "v3: the slow copies' mean is the target of every head", "return self.slow(states)",
        "return self.slow(states).mean(0, keepdim=True)",
    ),
    reinforce("v3: imagined errors not weighted", "(weight * losses)", "(1 * losses)"),
    reinforce(
        "v3: critic's mean divided by all frames, not those of the mask", "mask.sum(dim=1).clamp_min(1)",
        "mask.shape[1]",
    ),
    reinforce("v3: heads' losses averaged, not summed", "clamp_min(1)).sum()", "clamp_min(1)).mean()"),
    reinforce("v3: index of the bootstrap mask transposed", "mask.flatten(1))\n", "mask.transpose(1, 2).flatten(1))\n"),
    reinforce("v3: replayed values at full weight", "config.replay_scale * replay_loss", "replay_loss"),
    reinforce(
        "v3: the world model learns from replayed values at full weight",
        "torch.full_like(count, self.config.replay_scale)", "torch.full_like(count, 1.0)",
    ),
    reinforce(
        "v3: every head teaches the world model as a single one would", "states_gradient / len(values)",
        "states_gradient", REINFORCE,
        "tests/test_reinforce.py::test_the_world_model_learns_from_the_mean_of_identical_heads_as_from_one",
    ),
    agent(
        "v3: replayed values teach the world model nothing", "inference.states, learned.states_gradient)",
        "inference.states, None)", REINFORCE,
    ),
    reinforce("v3: replayed returns go on past a terminal frame", "~(batch.is_terminal[1:] | last)", "~last"),
    reinforce(
        "v3: replayed returns begin with the state's own reward", "bootstrap[:-1], batch.reward[1:])",
        "bootstrap[:-1], batch.reward[:-1])",
    ),
    reinforce(
        "v3: replayed returns bootstrap from the state before", "lambda_return(rewards, bootstrap[1:]",
        "lambda_return(rewards, bootstrap[:-1]",
    ),
    reinforce(
        "v3: replayed returns bootstrap from rows of another order", "returns[0].view(batch.reward.shape)",
        "returns[0].view(batch.reward.t().shape).t()",
    ),
    reinforce(
        "v3: replayed returns run into the next episode", "last = batch.is_first[1:]",
        "last = batch.is_first[1:] & False",
    ),
    reinforce("v3: an episode's last frame learns a value", "weight, kept = (~last)", "weight, kept = (last | True)"),
    reinforce(
        "v3: replayed values by the masks of the next frames", "mask[:, :-1].flatten(1)", "mask[:, 1:].flatten(1)"
    ),
    reinforce("v3: slow copy moves the rest of the way", "_foreach_mul_(steps, self", "_foreach_mul_(steps, 1 - self"),
    reinforce(
        "v3: slow copy moves in a skipped update", "(1 - skipped.to(steps[0].dtype))", "(1 + 0 * skipped)", NOT_FINITE
    ),
    loop(
        "v3: quantiles of returns kept from a skipped update", "agents/return_scale",
        "torch.where(skipped, self.bounds, bounds)", "bounds", NOT_FINITE,
    ),
    agent(
        "v3: a non-finite update is applied", "optimizer.found_inf = flag",
        "optimizer.found_inf = torch.zeros_like(flag)", NOT_FINITE,
    ),
    loop(
        "v3: quantiles of 10 % and 90 %", "agents/return_scale", "torch.tensor([0.05, 0.95])",
        "torch.tensor([0.1, 0.9])", REINFORCE,
    ),
    reinforce(
        "v3: a restored slow copy begins as the heads", 'state.get("slow", self.model.critic.state_dict())',
        "self.model.critic.state_dict()", RESTORED,
    ),
    reinforce("v3: quantiles of returns not restored", 'if "returns" in state', 'if "no returns" in state', RESTORED),
    loop(
        "v3: the first update of a warm-up moves", "agents/laprop", "((count - 1) / warmup)", "(count / warmup)",
        REINFORCE,
    ),
    loop(
        "v3: gradients of a tensor not clipped by its norm", "agents/laprop", "excess.clamp(min=1).reciprocal()",
        "torch.ones_like(excess)", REINFORCE,
    ),
    world(
        "v3: the state before a batch forgotten", "world_model/categorical", "unseen, batch.state)",
        "unseen)", REINFORCE,
    ),
    world(
        "v3: action not reset at an episode's first image", "world_model/block_rssm",
        "torch.where(is_first[..., None], 0.0, action)", "action", REINFORCE,
    ),
    world(
        "v3: an infinite reward learned from the last bin", "networks/two_hot", " + 0 * target", "", NOT_FINITE,
    ),
    world(
        "v3: biases of bins summed in the order that a thread takes", "kernels/last_layer", "dtype=torch.float64",
        "dtype=g.dtype", ALIKE,
    ),
    loop(
        "v3: exploration of a fixed width in place of the policy's", "networks/normal_actor",
        "(action + self.std * torch.randn_like(self.std))", "(action + 0.3 * torch.randn_like(self.std))", EXPLORED,
    ),
    agent(
        "v3: fixed noise where the policy's is asked for", 'exploration == "policy"', 'exploration != "policy"',
        EXPLORED,
    ),
    # what the world model learns
    world(
        "arguments of the KL exchanged", "world_model/gaussian",
        "gaussian_kl(posterior, prior)", "gaussian_kl(prior, posterior)",
    ),
    world(
        "free nats applied to the mean over frames", "world_model/gaussian", "kl.clamp_min(self.config.free_nats)",
        "kl.mean().clamp_min(self.config.free_nats).expand_as(kl)",
    ),
    world(
        "free nats subtracted", "world_model/gaussian", "kl.clamp_min(self.config.free_nats)",
        "(kl - self.config.free_nats).clamp_min(0)",
    ),
    world(
        "rewards scored at first images", "world_model/gaussian", "torch.where(batch.is_first, 0.0,",
        "torch.where(batch.is_first & False, 0.0,",
    ),
    world(
        "rewards scored only at first images", "world_model/gaussian", "torch.where(batch.is_first, 0.0,",
        "torch.where(~batch.is_first, 0.0,",
    ),
    world(
        "rewards predicted from the previous state", "world_model/gaussian", "predict_reward(states).loss(",
        "predict_reward(states.roll(1, 0)).loss(",
    ),
    world(
        "scales of reward and KL exchanged", "world_model/gaussian",
        '"reward": self.config.reward_scale, "kl": self.config.kl_scale}',
        '"reward": self.config.kl_scale, "kl": self.config.reward_scale}',
    ),
    world("image's gradient doubled", "world_model/decoder", "torch.mul(error, g[", "torch.mul(2 * error, g["),
    world("training images not dequantised", "world_model/gaussian", "dequantize=True", "dequantize=False"),
    world("images quantised to four bits", "world_model/encoder", "BITS = 5", "BITS = 4"),
    world(
        "posterior's mean in place of its sample", "world_model/rssm", "posterior.mean + posterior.std * noise[t]",
        "posterior.mean + 0 * noise[t]"
    ),
    world(
        "the prior of the step before", "world_model/gaussian", "self.rssm.prior(states[...",
        "self.rssm.prior(states.roll(1, 0)[...",
    ),
    world(
        "state not reset at an episode's first image", "world_model/rssm",
        "state * keep[t], action[t]", "state, action[t]",
    ),
    world(
        "action not reset at an episode's first image", "world_model/rssm",
        "action = action * keep\n", "action = action * 1\n"
    ),
    world("state reset at every image but the first", "world_model/rssm", "keep = (~is_first)", "keep = (is_first)"),
    world(
        "variance ratio of the KL inverted", "world_model/rssm", "(p.std / q.std).square()", "(q.std / p.std).square()",
        "tests/test_rssm.py::test_kl_is_that_of_torch_distributions",
    ),
    world(
        "gradient flows across an episode's start", "kernels/cell",
        "d_deter = d_deter * keep[t, :, None]", "d_deter = d_deter * 1",
        "tests/test_cell.py::test_observe_and_all_its_gradients_are_autograd_s",
    ),
    world(
        "noise missing in the gradient of a standard deviation", "kernels/cell",
        "to_raw = noise * torch.sigmoid", "to_raw = torch.sigmoid",
        "tests/test_cell.py::test_observe_and_all_its_gradients_are_autograd_s",
    ),
    # acting and planning
    agent(
        "planned action carried in place of the executed one", "Carry(state, action, plan.memory)",
        "Carry(state, plan.action, plan.memory)", "tests/test_agent.py::test_action_noise_is_added_only_when_asked",
    ),
    agent(
        "previous plan kept at an episode's first image", "carry = carry.reset(is_first)", "carry = carry",
        "tests/test_agent.py::test_a_first_image_forgets_what_was_carried",
    ),
    agent(
        "action with noise not clamped", "torch.randn_like(action)).clamp(-1, 1)", "torch.randn_like(action))",
        "tests/test_agent.py::test_action_noise_has_its_std_and_stays_in_bounds",
    ),
    planner(
        "J discounted once too often", "objective", "torch.arange(gains.shape[2], device",
        "torch.arange(1, 1 + gains.shape[2], device", "tests/test_objective.py::test_j_is_the_formula",
    ),
    planner(
        "sign of the penalty inverted", "objective",
        "gains - penalty, value - penalty", "gains + penalty, value + penalty",
        "tests/test_objective.py::test_a_positive_coefficient_is_a_penalty_and_a_negative_one_a_bonus",
    ),
    planner(
        "last value without its penalty", "objective", "gains - penalty, value - penalty", "gains - penalty, value",
        "tests/test_objective.py::test_j_is_the_formula",
    ),
    planner(
        "last state's reward counted twice", "objective", "[gains[:, :, :-1], value[:, :, -1:]]",
        "[gains, value[:, :, -1:]]",
        "tests/test_objective.py::test_the_reward_of_the_last_state_counts_once",
    ),
    planner(
        "J weighs a state by its own continuation", "objective", "survival(continues.movedim(2, 0)).movedim(0, 2)",
        "survival(continues.movedim(2, 0)).roll(-1, 0).movedim(0, 2)",
        "tests/test_objective.py::test_j_is_the_mean_over_the_states_where_the_episode_may_end",
    ),
    planner(
        "J asks models that do not say where episodes end", "protocol",
        "isinstance(model, Terminating) and model.terminates", 'hasattr(model, "continues")',
        "tests/test_objective.py::test_continuation_is_asked_only_where_a_model_says_that_episodes_end",
    ),
    planner(
        "spread with the sample correction (K - 1)", "objective",
        "correction: int = 0", "correction: int = 1",
        "tests/test_objective.py::test_ensemble_std_divides_by_the_number_of_heads",
    ),
    planner(
        "previous plan not shifted", "shooting", "torch.cat([memory.actions[..., 1:, :], last], dim=-2)",
        "memory.actions",
        "tests/test_ascent.py::test_proposals_blend_with_the_previous_plan_shifted_by_one_step",
    ),
    planner(
        "zeros blended in where there is no previous plan", "shooting",
        "self.reuse * memory.valid[:, None, None].to(state.dtype)",
        "self.reuse * torch.ones_like(shifted[:, :1, :1])",
        "tests/test_planners.py::test_rows_that_are_reset_start_over_and_the_others_do_not",
    ),
    planner(
        "weights of plan and proposal exchanged", "rollout", "share * previous[..., k, :] + (1 - share) * action",
        "(1 - share) * previous[..., k, :] + share * action",
        "tests/test_ascent.py::test_proposals_blend_with_the_previous_plan_shifted_by_one_step",
    ),
    planner(
        "gradient clipped over all candidates together", "steps", "grad.flatten(-2).norm(dim=-1)[..., None, None]",
        "grad.norm().expand(*grad.shape[:-2], 1, 1)",
        "tests/test_ascent.py::test_gradient_is_clipped_per_candidate",
    ),
    planner(
        "descent in place of ascent", "steps", "actions + length * moves", "actions - length * moves",
        "tests/test_ascent.py::test_a_small_step_raises_j_of_every_candidate",
    ),
    planner(
        "unmoved plan missing in the line search", "ascent", "best = best.join(self._evaluate(",
        "best = (self._evaluate(",
        "tests/test_draws.py::test_the_line_search_never_lowers_mean_j",
    ),
    planner(
        "last step of the line search chosen, whatever its J", "ascent", "self._scores(best.values).argmax(2)",
        "torch.full_like(best.values[:, :, 0, 0], -1, dtype=torch.long)",
        "tests/test_draws.py::test_one_step_of_the_ascent_is_that_of_a_plain_loop",
    ),
    planner(
        "new draws for each trial of the line search", "ascent", "trials, noise, climbs=left > 0))",
        "trials, self._draws(model, state), climbs=left > 0))",
        "tests/test_draws.py::test_all_candidates_and_iterations_see_the_same_draws",
    ),
    planner(
        "J of one draw in place of the mean over draws", "ascent", "score = values.mean(-1)", "score = values[..., 0]",
        "tests/test_draws.py::test_the_executed_action_spreads_over_seeds_as_one_over_the_root_of_the_draws",
    ),
    planner(
        "the gradient of one draw", "ascent", ".unflatten(1, each).mean(3)\n        actions",
        ".unflatten(1, each)[:, :, :, 0]\n        actions",
        "tests/test_draws.py::test_one_step_of_the_ascent_is_that_of_a_plain_loop",
    ),
    planner(
        "zero actions in place of the policy's after the ascended ones", "ascent",
        "share[..., self.ascended :] = 0", "pass",
        "tests/test_draws.py::test_one_step_of_the_ascent_is_that_of_a_plain_loop",
    ),
    planner(
        "policy sample in place of its mode", "rollout", "policy.mode if mode else policy.rsample()",
        "policy.rsample()",
        "tests/test_draws.py::test_one_step_of_the_ascent_is_that_of_a_plain_loop",
    ),
    planner(
        "sign of the caution term inverted", "ascent", "score = score - self.caution", "score = score + self.caution",
        "tests/test_draws.py::test_caution_keeps_the_policy_s_action_where_the_draws_do_not_agree",
    ),
    planner(
        "unit step without the factor sqrt(H A)", "ascent", "(self.ascended * grad.shape[-1]) ** 0.5", "1.0",
        "tests/test_draws.py::test_one_step_of_the_ascent_is_that_of_a_plain_loop",
    ),
    planner(
        "worst candidate executed", "protocol", "values.argmax(dim=1)", "values.argmin(dim=1)",
        "tests/test_ascent.py::test_executes_the_first_action_of_each_rows_best_candidate",
    ),
    planner(
        "worst samples chosen as elites", "sampling", "values.topk(elites, dim=1)",
        "values.topk(elites, dim=1, largest=False)",
        "tests/test_sampling.py::test_plan_is_that_of_the_plain_loop",
    ),
    planner(
        "temperature divides J", "sampling", "temperature * gap", "gap / max(temperature, 1e-9)",
        "tests/test_sampling.py::test_plan_is_that_of_the_plain_loop",
    ),
    planner(
        "mode in place of a sample of the policy", "policy", "policy.rsample() if self.sample else policy.mode",
        "policy.mode", "tests/test_planners.py::test_the_policy_executes_samples_where_that_is_asked_for",
    ),
    # replay: storing and sampling
    loop(
        "sequences begin one frame too late", "data/replay", "- length + 1 - before_end", "- length + 2 - before_end",
        "tests/test_replay.py::test_starts_are_uniform_over_every_place_that_fits",
    ),
    loop(
        "sequences cross an episode's end", "data/replay",
        "np.maximum(lengths - length + 1, 0)", "np.maximum(lengths, 0)",
        "tests/test_replay.py::test_starts_are_uniform_over_every_place_that_fits",
    ),
    loop(
        "frames of two streams share an index", "data/replay",
        "positions * self.streams + streams", "positions + streams",
        "tests/test_replay.py::test_index_names_the_same_frame_each_time",
    ),
    loop(
        "streams in one ring", "data/ring", "return stream * self.size + position % self.size",
        "return position % self.size", "tests/test_replay.py::test_each_frame_is_stored_once",
    ),
    loop(
        "previous action stored", "data/collect", "act.action if self._shared else executed", "self._carry.action",
        "tests/test_collect.py::test_a_real_agent_s_actions_are_stored_as_they_were_executed",
    ),
    loop(
        "every frame stored as an episode's first", "data/collect", "reward, none, terminated[rows]",
        "reward, ~none, terminated[rows]",
        "tests/test_collect.py::test_rows_end_each_in_their_time",
    ),
    loop(
        "truncated episode stored as terminated", "data/collect", "reward, none, terminated[rows]",
        "reward, none, (terminated | truncated)[rows]",
        "tests/test_collect.py::test_rows_end_each_in_their_time",
    ),
    loop(
        "terminated episode stored as truncated", "data/collect", "reward, none, terminated[rows]",
        "reward, none, none",
        "tests/test_collect.py::test_the_last_frame_of_an_episode_that_terminates_is_terminal",
    ),
    loop(
        "is_first stays true after the start of an episode", "data/collect",
        "self._is_first = self._none_first\n        self.simulator_errors",
        "self._is_first = self._is_first\n        self.simulator_errors",
        "tests/test_collect.py::test_the_agent_sees_each_image_once_and_is_first_exactly_at_starts",
    ),
    loop(
        "parallel environments with equal seeds", "data/collect", "SeedSequence([seed, row, number])",
        "SeedSequence([seed, number])", "tests/test_collect.py::test_every_episode_has_a_seed_of_its_own",
    ),
    loop(
        "updates issued repeatedly", "training/schedule", "self.issued += missing", "self.issued = missing",
        "tests/test_schedule.py::test_what_is_asked_twice_is_owed_once",
    ),
    loop(
        "updates of the first round missing", "training/schedule",
        "return self.lead + max", "return max", "tests/test_schedule.py",
    ),
    # evaluation, and keeping checkpoints
    loop(
        "exploration noise in evaluations", "evaluation/episodes", "agent.act(planner, carry, *tensors)",
        "agent.act(planner, carry, *tensors, 0.3)",
        "tests/test_evaluate.py::test_the_agent_acts_without_noise_and_is_told_of_each_start",
    ),
    loop(
        "evaluations start at environment seed 0", "evaluation/episodes", "[seed + int(e) for e in episode]",
        "[int(e) for e in episode]", "tests/test_evaluate.py::test_episode_e_is_played_from_seed_plus_e",
    ),
    loop(
        "torch's seed 0 in every evaluation", "evaluation/episodes", "torch.manual_seed(seed)", "torch.manual_seed(0)",
        EVALUATION + "test_an_evaluation_has_a_seed_of_its_own",
    ),
    loop(
        "last reward of an episode in place of its return", "evaluation/episodes", "returns[episode[i]] += reward[i]",
        "returns[episode[i]] = reward[i]", "tests/test_evaluate.py::test_lengths_are_agent_steps",
    ),
    loop(
        "evaluation under the training's seed", "evaluation/player", "settings.seed,", "self._config.seed,",
        EVALUATION + "test_an_evaluation_has_a_seed_of_its_own",
    ),
    loop(
        "training under torch's seed 0", "training/trainer", "seed_everything(config.seed)", "seed_everything(0)",
        EVALUATION + "test_an_evaluation_has_a_seed_of_its_own",
    ),
    loop(
        "training environments from seed 0", "training/setup", "replay, counters, config.seed)", "replay, counters, 0)",
        EVALUATION + "test_a_training_s_seed_does_not_reach_an_evaluation_nor_the_other_way_round",
    ),
    loop(
        "replay drawn from seed 0", "training/setup", "memmap=memmap, seed=config.seed,", "memmap=memmap, seed=0,",
        EVALUATION + "test_what_is_drawn_from_replay_depends_on_the_training_s_seed",
    ),
    loop(
        "worst checkpoint kept as the best", "training/checkpoints",
        "best = -math.inf if best is None else best\n        if path is None or not mean_return > best:",
        "best = math.inf if best is None else best\n        if path is None or not mean_return < best:",
        EVALUATION + "test_the_best_evaluation_s_checkpoint_is_kept",
    ),
    loop(
        "last of equal checkpoints kept, or one without a return", "training/checkpoints",
        "not mean_return > best", "mean_return < best",
        EVALUATION + "test_the_best_evaluation_s_checkpoint_is_kept",
    ),
    loop(
        "newest checkpoint kept as the best", "training/trainer",
        'self.state.best_return = row["return_mean"]', "self.state.best_return = None",
        EVALUATION + "test_the_best_evaluation_s_checkpoint_is_kept",
    ),
    loop(
        "evaluations with the training's planner", "training/beside",
        "self._here(Order(env_steps, self._config.planner,", "self._here(Order(env_steps, self._config.trained_by,",
        EVALUATION + "test_one_planner_trains_and_another_one_evaluates",
    ),
    loop(
        "no exploration noise while collecting", "training/trainer",
        "send(self.train_planner, self.config.train.action_noise)",
        "send(self.train_planner, 0.0)", EVALUATION + "test_noise_is_for_the_training_alone",
    ),
    loop(
        "one checkpoint too many kept", "runs/checkpoint", "[:-keep]", "[: -keep - 1]",
        "tests/test_checkpoint.py::test_prune_keeps_the_last_and_other_peoples_files",
    ),
    # evaluations beside training
    loop(
        "the checkpoint's own file played in place of a snapshot", "training/checkpoints",
        "return keep_snapshot(self._folder, self._saved_at[0])",
        "return checkpoint_path(self._folder, self._saved_at[0])", BESIDE,
    ),
    loop(
        "a snapshot removed while it is played", "training/checkpoints",
        'drop_snapshots(self._folder, evaluating and evaluating["env_steps"])', "drop_snapshots(self._folder, None)",
        BESIDE,
    ),
    loop(
        "snapshots left behind", "training/checkpoints",
        'drop_snapshots(self._folder, evaluating and evaluating["env_steps"])', "pass", BESIDE,
    ),
    loop(
        "other weights played than those of the snapshot", "evaluation/player", "if order.checkpoint:", "if False:",
        BESIDE,
    ),
    loop(
        "an evaluation recorded at the env steps at which it ended", "training/trainer",
        "self._record_evaluation(counters, played, snap", "self._record_evaluation(asdict(self.counters), played, snap",
        BESIDE,
    ),
    loop(
        "the newest checkpoint kept in place of the evaluated one", "training/trainer",
        'played, snapshot_path(self.folder.checkpoints, counters["env_steps"]))', "played, self._checkpoints.last())",
        BESIDE,
    ),
    loop(
        "two evaluations at once", "training/trainer",
        "self._receive_evaluation(wait=True)  # of the one before: never two at once", "pass", BESIDE,
    ),
    loop(
        "a run that ends before its last evaluation", "training/schedule", "return Due.RESULT", "return Due.NOTHING",
        BESIDE, "tests/test_schedule.py::test_training_goes_on_beside_an_evaluation_and_the_end_waits_for_the_last_one",
    ),
    loop(
        "an evaluation that a stop did not wait for left out", "training/trainer",
        "else:\n            self.evaluator.begin(env_steps, snapshot)",
        "else:\n            self.schedule.evaluation_lost()",
        "tests/test_beside.py::test_an_evaluation_that_a_stop_did_not_wait_for_is_played_on_resume",
    ),
    loop(
        "training's generators used by an agent for snapshots", "evaluation/player", "with preserved_rng(device):",
        "with contextlib.nullcontext():",
        "tests/test_beside.py::test_without_its_process_a_run_plays_its_evaluations_itself",
    ),
    loop(
        "a late evaluation taken for a step back", "sweeps/run", "if not evaluated or env_steps",
        "if True or env_steps",
        "tests/test_beside.py::test_a_sweep_does_not_take_a_late_evaluation_for_a_step_back_nor_for_the_end",
    ),
    Mutation(
        "a process that outlives its run", "envs/processes.py",
        "    threading.Thread(target=_end_with_parent, daemon=True).start()\n", "",
        ("tests/test_beside.py::test_no_process_outlives_a_run_that_is_killed",),
    ),
    # copied states of the simulator
    restored(
        "a restored state without what follows from it", "mujoco.mj_step1(model, data)",
        "mujoco.mj_kinematics(model, data)",
        "test_images_and_rewards_after_a_state_are_the_same_bit_for_bit",
    ),
    restored(
        "a restored state with another episode's target", "in state.model.items()", "in {}.items()",
        "test_images_and_rewards_after_a_state_are_the_same_bit_for_bit",
    ),
    restored(
        "a restored state with another random generator", "vars(self._env.task).update(copy.deepcopy(state.task))",
        "pass", "test_a_state_right_after_a_reset_and_the_random_generator_are_restored",
    ),
    restored(
        "a restored state with another count of steps",
        "self._env._step_count, self._env._reset_next_step, self._env_steps = state.counters",
        "self._env_steps = state.counters[2]", "test_dm_control_s_time_limit_is_restored",
    ),
    # measures of an analysis
    measured(
        "noise counted as signal", "gradient_snr", "means.mean(1).abs(), means.std(1)",
        "means.abs().mean(1), means.std(1)", "test_the_signal_to_noise_ratio_is_the_closed_form",
    ),
    measured(
        "noise of one draw in place of a mean's", "gradient_snr", ".double().mean(2)", ".double()[:, :, 0]",
        "test_the_signal_to_noise_ratio_is_the_closed_form",
    ),
    measured(
        "errors of a return not discounted", "model_error", "discount ** np.arange(len(difference)) * difference",
        "difference", "test_the_errors_of_the_model_are_the_closed_form",
    ),
    measured(
        "one draw in place of the expected prediction", "model_error", "model.reward(states).mean(1)",
        "model.reward(states)[:, 0]", "test_the_model_s_noise_is_averaged_out",
    ),
    measured(
        "calibration over depths", "model_error", '"checkpoint", "method", "depth").values()',
        '"checkpoint", "method").values()', "test_calibration_is_spearman_s_at_equal_depth",
    ),
    measured(
        "a refined plan executed where the policy's ended", "true_gain", "bench.envs.go_to(visit.snapshots)",
        "visit.snapshots", "test_the_true_gain_is_the_closed_form",
    ),
    measured(
        "last reward counted twice", "bench", "gains[rows, last] = self", "gains[rows, last] += self",
        "test_the_true_gain_is_the_closed_form",
    ),
    measured(
        "a value behind a termination", "bench", "np.where(executed.valued, value, executed.reward)", "value",
        "test_a_plan_that_terminates_the_episode_is_worth_its_rewards_and_no_value",
    ),
    measured(
        "the value of where a plan would have ended", "bench", "np.maximum(executed.reached - 1, 0)",
        "np.full(len(executed.reached), -1)",
        "test_the_control_s_plans_have_the_value_of_the_state_at_the_time_limit",
    ),
    measured(
        "plans that the time limit cuts off count", "true_gain", "~(before.whole & after.whole)",
        "before.whole & False",
        "test_states_whose_plans_the_time_limit_cuts_off_are_left_out_and_counted",
    ),
    measured(
        "gradients across the end of an episode", "finite_differences", "reached = np.isfinite(rewards).all(1)",
        "reached = np.isfinite(rewards).any(1)",
        "test_gradients_are_compared_up_to_the_first_end_of_a_moved_plan",
    ),
    measured(
        "no policy behind the ascended actions", "true_gain", "dim=1), plan.shape[1], seed)", "dim=1), None, seed)",
        "test_behind_the_ascended_actions_the_policy_acts_in_the_real_world",
    ),
    measured(
        "plans judged on different draws", "true_gain", "torch.manual_seed(seed)  # plans", "pass  # plans",
        "test_a_plan_that_the_ascent_leaves_alone_gains_nothing_and_is_not_counted_as_improved",
    ),
    measured(
        "clipped differences over the whole distance", "finite_differences", "differences / distances, ",
        "differences / (2 * epsilon), ", "test_the_simulator_s_gradient_is_right_at_the_bounds_of_the_actions",
    ),
    measured(
        "the simulator's gradient not discounted", "finite_differences", "@ discount ** np.arange(depth)",
        "@ np.ones(depth)", "test_gradients_are_those_of_the_simulator_and_of_the_model",
    ),
    measured(
        "the control takes the worst length", "finite_differences", ".argmax(0)", ".argmin(0)",
        "test_the_control_ascends_the_real_return_and_value",
    ),
    measured(
        "differences to the first episode", "finite_differences",
        'other = returns.get((row["checkpoint"], row["episode"]))', 'other = returns.get((row["checkpoint"], 0))',
        "test_differences_are_paired_by_episode",
    ),
    measured(
        "noise of equal size on every weight", "bad_model", "level * weight.square().mean().sqrt() * noise",
        "level * noise", "test_noise_is_relative_to_each_weight_and_leaves_actor_critic_and_the_agent_alone",
    ),
    measured(
        "planning in the agent's own model", "bad_model", "self.planner.plan(self.model, state",
        "self.planner.plan(model, state",
        "test_a_model_whose_actions_point_the_other_way_loses_what_the_true_one_gains",
    ),
    measured(
        "settings taken away without a correction", "ablate", "holm(p_values) if known else p_values", "p_values",
        "test_differences_are_to_the_planner_with_all_settings_and_corrected",
    ),
    measured(
        "the first state in place of an episode's mean", "estimate", "np.mean(episodes[n])", "episodes[n][0]",
        "test_estimates_are_over_the_episodes_of_checkpoints",
    ),
    Mutation(
        "an analysis forgets what other processes added", "dreamer_mpc/analysis/ledger.py",
        'self._read()\n            number = max', "number = max",
        ("tests/test_analyze.py::test_two_processes_do_not_lose_each_other_s_units",),
    ),
    # the library
    Mutation(
        "a player that does not reset by mask", "dreamer_mpc/library/player.py", "self._is_first | rows",
        "self._is_first",
        ("tests/test_library.py::test_a_row_that_is_reset_forgets_and_the_others_go_on",),
    ),
    Mutation(
        "a player that draws from torch's generator", "dreamer_mpc/library/player.py",
        "            self._keep_generators()\n", "            pass\n",
        ("tests/test_library.py::test_a_player_plays_the_episode_of_an_evaluation",),
    ),
    Mutation(
        "an exported policy that samples its action", "dreamer_mpc/library/export.py", ".mode.clamp",
        ".rsample().clamp",
        ("tests/test_library.py::test_an_exported_policy_is_the_agent_s",),
    ),
    Mutation(
        "fine-tuning that loads no critic", "dreamer_mpc/training/initial.py", "_part(name) not in anew",
        '_part(name) not in anew | {"critic"}',
        ("tests/test_init_from.py::test_a_run_starts_from_weights_alone_and_says_so",),
    ),
    Mutation(
        "a resume that changes settings without a mark", "dreamer_mpc/training/trainer.py",
        "changing_results(self._changes)", "{}",
        ("tests/test_changes.py::test_settings_that_change_results_amid_a_run_are_marked_in_its_metrics",),
    ),
    Mutation(
        "a refused run that leaves its folder", "dreamer_mpc/training/setup.py", "folder.give_back()", "pass",
        ("tests/test_init_from.py::test_another_number_of_actions_is_refused_with_the_tensors",),
    ),
    # environments and images
    Mutation(
        "stacked frames with the newest first", "envs/frames.py", "np.concatenate(self._frames, axis=-1)",
        "np.concatenate(list(self._frames)[::-1], axis=-1)",
        ("tests/test_inputs.py::test_stacked_frames_are_the_last_ones_and_gray_is_their_brightness",),
    ),
    Mutation(
        "frames of the last episode in the next one", "envs/frames.py", "[self._seen(image)] * self._frames.maxlen",
        "[self._seen(image)] * (1 if self._frames else self._frames.maxlen)",
        ("tests/test_inputs.py::test_stacked_frames_are_the_last_ones_and_gray_is_their_brightness",),
    ),
    Mutation(
        "a camera's name ignored", "envs/dmc.py", "return names.index(camera)", "return 0",
        ("tests/test_inputs.py::test_arguments_reach_task_and_factory_and_cameras_have_names",),
    ),
    # the package
    Mutation(
        "a wheel without the presets", "pyproject.toml", '"configs/*.yaml", ', "",
        ("tests/test_package.py::test_a_wheel_works_beside_a_user_s_package_envs",),
    ),
    # sweeps on a cluster
    Mutation(
        "a cancelled job requeues itself", "dreamer_mpc/sweeps/allocation.py",
        'return state == "RUNNING"', "return True",
        ("tests/test_launchers.py::test_a_job_that_must_end_is_requeued_unless_it_was_cancelled",),
    ),
    Mutation(
        "jobs are written down only when SLURM has them", "dreamer_mpc/sweeps/jobs.py",
        "[list(names) for names in runs], starts)\n        self._write()", "[list(names) for names in runs], starts)",
        ("tests/test_launchers.py::test_a_second_command_finds_the_jobs_and_a_killed_one_s_by_their_name",),
    ),
    Mutation(
        "a job that is requeued counts as ended", "dreamer_mpc/sweeps/slurm.py",
        "if self._over.setdefault(job, self._look) == self._look:", "if False:",
        ("tests/test_launchers.py::test_how_a_job_ended_decides_what_becomes_of_its_run",),
    ),
    Mutation(
        "an owner on another host is overlooked", "dreamer_mpc/util/owner.py",
        "if before is None or before.is_here or before.token == dead:", "if True:",
        ("tests/test_owner.py::test_an_owner_on_another_host_is_kept_out_while_its_heart_beats",),
    ),
    Mutation(
        "the folder of a suspended job is taken", "dreamer_mpc/util/heartbeat.py",
        "return slurm.state(owner.job) in slurm.ON_NODES", "return False",
        ("tests/test_owner.py::test_an_owner_without_a_heartbeat_is_dead_unless_slurm_runs_its_job",),
    ),
    Mutation(
        "a heartbeat ends the lock", "dreamer_mpc/util/heartbeat.py",
        "owner = owner_in(self._file, self._path)", "owner = read_owner(self._path)",
        ("tests/test_owner.py::test_a_heart_that_beats_does_not_end_the_lock",),
    ),
    Mutation(
        "a process whose folder was taken over writes on", "dreamer_mpc/util/heartbeat.py",
        "owner.token != self._owner.token", "False",
        ("tests/test_owner.py::test_a_process_whose_folder_was_taken_over_ends_before_it_writes",),
    ),
    Mutation(
        "jobs of an earlier command are not looked for", "dreamer_mpc/sweeps/sweep.py",
        "found = launcher.find(runs)", "found = {}",
        ("tests/test_launchers.py::test_a_second_command_finds_the_jobs_and_a_killed_one_s_by_their_name",),
    ),
    loop("text on a report's page is not escaped", "report/html", "def heading(text: str, color",
         "escape = str\n\n\ndef heading(text: str, color",
         "tests/test_report.py::test_the_page_is_one_file_that_asks_nobody_for_anything"),
    loop("videos are in a report's page whatever their size", "report/html", "if (size + 2) // 3 * 4 > self._left:",
         "if False:", "tests/test_report.py::test_what_does_not_fit_is_named"),
    loop("a resumed run begins another one in wandb", "runs/logger", "    if not known:\n        known =",
         "    if True:\n        known =", "tests/test_logger.py::test_wandb_is_offline_unless_told_otherwise"),
    loop("throughput counts evaluations", "training/reporting", "self._since, self._env_steps,",
         "self._since, self._env_steps, self._updates = getattr(self, '_since', self._clock()), 0, 0\n        _, "
         "self._env_steps,",
         "tests/test_train.py::test_throughput_is_that_of_training_since_the_last_record"),
    loop("a video's frame is the one after the step", "evaluation/episodes",
         "envs.view(0) if recorded else None\n        image, reward, terminated, truncated, info = envs.step(executed)",
         "None\n        image, reward, terminated, truncated, info = envs.step(executed)\n        view = envs.view(0)",
         "tests/test_view.py::test_each_frame_at_full_size_is_the_one_that_the_agent_decided_on"),
    loop("any change of a decision's frames counts as visible", "report/video", "if change.max() < VISIBLE:",
         "if change.max() < 1:", "tests/test_video.py::test_the_decision_picture_shows_the_change_that_was_made_and_"
         "says_where_there_is_none"),
    loop("every difference is drawn as decided", "report/comparison", "not is_policy and not decided(row)",
         "not is_policy and False", "tests/test_video.py::test_a_decided_difference_is_a_full_point"),
    loop("methods of unknown names share a style", "report/styles", "        free.remove(chosen[method])\n", "",
         "tests/test_styles.py::test_a_name_s_style_depends_on_it_alone_until_two_would_be_equal"),
    Mutation(
        "a unit of which rows are lost counts as done", "dreamer_mpc/analysis/ledger.py",
        "if len(rows) < wanted:", "if len(rows) < 0:",
        ("tests/test_analyze.py::test_a_unit_that_lacks_a_row_is_measured_again_with_the_later_ones",),
    ),
    Mutation(
        "a measurement that is there twice counts twice", "dreamer_mpc/analysis/ledger.py",
        "if len(rows) > wanted:", "if len(rows) > 2 * wanted:",
        ("tests/test_analyze.py::test_a_row_too_many_is_refused_by_its_line",),
    ),
    episodes(
        "an episode that is there twice counts twice", "if episode in lines:", "if None in lines:", MISFIT_ROW,
    ),
    episodes(
        "an episode of another seed counts", 'if row["env_seed"] != seed:', 'if row["env_seed"] < 0:', MISFIT_ROW,
    ),
    episodes(
        "a return that is no number counts", "math.isfinite(row[key]) and row[key] >= least", "not row[key] < least",
        MISFIT_ROW,
    ),
    episodes(
        "an episode whose row is lost is not played again",
        "first = next((number for number in range(episodes) if number not in there), episodes)",
        "first = min(len(there), episodes)",
        "tests/test_compare.py::test_episodes_whose_rows_are_lost_are_played_again",
    ),
    Mutation(
        "a folder with the name of a checkpoint is one", "dreamer_mpc/runs/checkpoint.py",
        'files_of(folder, f"checkpoint-*{SUFFIX}")', 'Path(folder).glob(f"checkpoint-*{SUFFIX}")',
        ("tests/test_files.py::test_folders_with_names_of_files_are_in_nobody_s_way",),
    ),
    Mutation(
        "a checkpoint that cannot be removed ends the run", "dreamer_mpc/runs/checkpoint.py",
        "discard(file)", "file.unlink(missing_ok=True)",
        ("tests/test_files.py::test_a_file_that_cannot_be_removed_costs_its_space_and_one_line",),
    ),
    Mutation(
        "free space is the remedy for everything", "dreamer_mpc/util/errors.py",
        "REMEDIES.get(error.errno, \"check the disk\")", '"free space"',
        ("tests/test_files.py::test_the_remedy_follows_from_the_reason",),
    ),
    Mutation(
        "metrics that are lost are not mentioned", "dreamer_mpc/training/reporting.py",
        "if there < written:", "if there > written:",
        ("tests/test_files.py::test_metrics_that_are_lost_are_named_and_the_run_goes_on",),
    ),
    Mutation(
        "records after a checkpoint stay where earlier ones are lost", "dreamer_mpc/runs/logger.py",
        'if env_steps is None or record["env_steps"] <= env_steps]', "]",
        ("tests/test_logger.py::test_records_after_a_checkpoint_do_not_move_up_where_earlier_ones_are_lost",),
    ),
    Mutation(
        "an empty value means the default", "dreamer_mpc/config/load.py",
        "if arg.strip() and not (joined", "if True or (joined",
        ("tests/test_fuzz_config.py::test_an_empty_value_is_not_the_default",),
    ),
    Mutation(
        "a run that is given a name is drawn without it as well", "dreamer_mpc/report/curves.py",
        "if folder.resolve() not in named or (label and folder == path)", "if folder.resolve()",
        ("tests/test_plot.py::test_what_cannot_be_gathered_is_named",),
    ),
    # what code of others does to the program
    Mutation(
        "a logger's sys.exit ends the run", "dreamer_mpc/runs/logger.py", "except BaseException as error:",
        "except Exception as error:", (f"{FAULTS}test_a_backend_that_fails_is_switched_off",),
    ),
    Mutation(
        "a logger moves the program to another folder", "dreamer_mpc/runs/logger.py",
        "with self._surroundings:\n                yield", "if True:\n                yield",
        (f"{FAULTS}test_a_backend_that_fails_is_switched_off",),
    ),
    Mutation(
        "a folder counts as an installed logger", "dreamer_mpc/runs/logger.py", "if is_mere_folder(backend):",
        "if False:", (f"{FAULTS}test_a_folder_of_its_name_is_no_package_and_a_broken_package_costs_the_logger",),
    ),
    Mutation(
        "a run ended by others is not saved", "dreamer_mpc/training/trainer.py", "if ended or isinstance(",
        "if isinstance(", (f"{FAULTS}test_an_error_of_the_code_is_one_line_with_a_traceback_in_the_run_folder",),
    ),
    Mutation(
        "no traceback in the run folder", "dreamer_mpc/util/ending.py", "error.traceback_folder = folder", "pass",
        (f"{FAULTS}test_an_error_of_the_code_is_one_line_with_a_traceback_in_the_run_folder",),
    ),
    Mutation(
        "a run follows the working folder", "dreamer_mpc/util/files.py", "return path.absolute()", "return path",
        (f"{ACCIDENTS}test_a_run_stays_in_its_folder_whatever_enters_another_one",),
    ),
    Mutation(
        "an environment's import path is the program's", "envs/surroundings.py",
        '"imports": (lambda: list(sys.path), _set_path),', "",
        (f"{ACCIDENTS}test_an_environment_may_wreck_what_a_program_takes_for_granted",),
    ),
    Mutation(
        "closed standard output stays closed", "envs/surroundings.py", "restore_descriptors()\n", "pass\n",
        (f"{ACCIDENTS}test_an_environment_may_wreck_what_a_program_takes_for_granted",),
    ),
    Mutation(
        "os._exit of an environment ends the run", "envs/surroundings.py", "os._exit = refuse", "pass",
        (f"{ACCIDENTS}test_an_environment_that_ends_the_process_with_0_is_an_error_and_the_run_is_saved",),
    ),
    Mutation(
        "files of the working folder hide packages", "envs/imports.py", "sys.path.append(", "sys.path.insert(0, ",
        ("tests/test_envs.py::test_files_of_the_current_folder_hide_no_others_but_the_named_module",),
    ),
    Mutation(
        "a run that ends with 0 is restarted for ever", "dreamer_mpc/sweeps/sweep.py",
        "(end.asked or self._stopping() or further)", "True",
        ("tests/test_sweep.py::test_a_run_whose_process_stops_goes_on_only_where_it_gets_further",),
    ),
    Mutation(
        "threads of others hold up the end", "dreamer_mpc/__main__.py",
        "    end_process(code)\n", "    sys.exit(code)\n",
        ("tests/test_ending.py::test_a_thread_or_process_that_does_not_end_does_not_hold_up_the_end",),
    ),
]  # fmt: skip


def copy_tree(folder: Path) -> Path:
    """The tree in `folder`, without what no test reads."""
    never = shutil.ignore_patterns(*NEVER_COPIED)

    def left_out(directory: str, names: list[str]) -> set[str]:
        return never(directory, names) | ({*names} & {*LEFT_OUT} if Path(directory) == ROOT else set())

    tree = Path(shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=left_out))
    shutil.copytree(ROOT / REFERENCE_CURVES, tree / REFERENCE_CURVES)
    return tree


def mutated(source: str, mutation: Mutation) -> str:
    """The file with the change made; ValueError if the piece is not there exactly once."""
    found = source.count(mutation.old)
    if found != 1:
        raise ValueError(f"{mutation.name}: its piece of {mutation.file} is there {found} times")
    return source.replace(mutation.old, mutation.new)


def try_one(mutation: Mutation, tree: Path) -> str:
    """The test that failed; "" if none did. RuntimeError if the tests do not run."""
    path = tree / mutation.file
    source = path.read_text()
    path.write_text(mutated(source, mutation))
    try:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=SECONDS)
    finally:
        path.write_text(source)
    if done.returncode not in (0, 1):
        raise RuntimeError("\n".join(done.stdout.splitlines()[-15:]) + done.stderr)
    failed = re.search(r"^FAILED (\S+?)(\[|\s|$)", done.stdout, re.MULTILINE)
    return failed[1] if failed else ""


def run(mutations: Sequence[Mutation]) -> int:
    """Print a line for each; how many survived or could not be tried."""
    bad = 0
    print("| mutation | file | caught by | caught | seconds |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder))
        for mutation in mutations:
            began = time.monotonic()
            try:
                by = try_one(mutation, tree)
            except (ValueError, RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{mutation.name} could not be tried: {error}", file=sys.stderr)
                by, answer = "", "error"
            else:
                answer = "yes" if by else "no"
            bad += answer != "yes"
            seconds = time.monotonic() - began
            print(f"| {mutation.name} | {mutation.file} | {by} | {answer} | {seconds:.0f} |", flush=True)
    return bad


LIST_HEAD = """# Mutations

Changes of the code that must not go unnoticed, and the tests that notice each. `python -m scripts.mutations` makes them
one by one in a copy of the tree and runs their tests; this list is written by `python -m scripts.mutations --list`.

| what is broken | where | caught by |
|---|---|---|"""


def listed(mutations: Sequence[Mutation]) -> str:
    """The table as Markdown."""
    rows = []
    for mutation in mutations:
        tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in mutation.tests)
        rows.append(f"| {mutation.name} | `{mutation.file.removeprefix('dreamer_mpc/')}` | {tests} |")
    return "\n".join([LIST_HEAD, *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Run or list; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this one alone; may be given several times")
    parser.add_argument("--list", action="store_true", help="print the table as Markdown, and try nothing")
    args = parser.parse_args(argv)
    unknown = set(args.only or []) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        parser.error(f"no mutation is called {', '.join(sorted(unknown))}: see --list")
    chosen = [mutation for mutation in MUTATIONS if not args.only or mutation.name in args.only]
    if args.list:
        print(listed(chosen))
        return 0
    return int(run(chosen) > 0)


if __name__ == "__main__":
    sys.exit(main())
