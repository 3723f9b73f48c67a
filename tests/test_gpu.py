"""Fast paths against the eager code, on a GPU; skipped without one."""

from dataclasses import asdict
from functools import partial

import pytest
import torch

from dreamer_mpc.agents.behavior import BehaviorConfig
from dreamer_mpc.agents.dreamer import Dreamer
from dreamer_mpc.agents.laprop import LaProp
from dreamer_mpc.agents.latents import make_latents
from dreamer_mpc.agents.optimizers import OptimizerConfig
from dreamer_mpc.agents.returns import lambda_return
from dreamer_mpc.config import load_presets
from dreamer_mpc.kernels import block_cell, block_walk, cell, fused, graphs, norm, pixels, pooled_norm
from dreamer_mpc.kernels.graphs import OWN, PRIORITIES, Aside, Captured
from dreamer_mpc.library import Player
from dreamer_mpc.networks import MLP, Critic
from dreamer_mpc.networks.norm_mlp import NormEnsemble, NormMLP
from dreamer_mpc.networks.normal_actor import NormalActor
from dreamer_mpc.networks.two_hot import TwoHot, symexp_bins
from dreamer_mpc.networks.value_ensemble import TwoHotCritic
from dreamer_mpc.planners import make_planner
from dreamer_mpc.planners.rollout import closed_loop, imagine, joined, policy_rollout
from dreamer_mpc.world_model import GaussianWorldModel, WorldModelConfig, make_world_model, norm_encoder
from dreamer_mpc.world_model.block_rssm import BlockRSSM, gumbel
from dreamer_mpc.world_model.decoder import Decoder
from dreamer_mpc.world_model.encoder import Encoder, preprocess
from dreamer_mpc.world_model.norm_decoder import NormDecoder
from dreamer_mpc.world_model.norm_encoder import NormEncoder
from dreamer_mpc.world_model.rssm import Gaussian, gaussian_kl
from tests.support.agents import TINY, make_batch
from tests.support.block_scans import Sizes as ScanSizes
from tests.support.block_scans import scan_both
from tests.support.cell_walks import KINDS, Sizes, assert_near, walk_both
from tests.support.planning import PAPER

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ACTION_DIM = 3
V3 = {
    "world_model": WorldModelConfig(
        kind="categorical", continuation=True, deter=192, stoch=12, classes=6, hidden=48, free_nats=1.0,
        encoder_channels=(8, 12, 16, 16), decoder_dense=256, decoder_channels=(16, 12, 8), reward_hidden=48,
    ),
    "behavior": BehaviorConfig(kind="v3", exploration="policy", actor_hidden=48, value_hidden=48, horizon=5),
    "optimizer": OptimizerConfig(kind="laprop", warmup=4),
}  # fmt: skip


def make_pair(**settings):
    """A captured and an eager agent with the same weights."""
    agents = []
    for capture in (True, False):
        torch.manual_seed(0)
        agents.append(Dreamer(ACTION_DIM, device="cuda:0", capture=capture, **settings))
    return agents


def random_batch(seed):
    return make_batch(seed, 12, 8, ACTION_DIM, [(0, row) for row in range(0, 8, 2)], "cuda")


PLANS = {
    "dream-mpc": {},
    "dream-mpc paper": PAPER,
    "dream-mpc released": asdict(load_presets("planner/dream-mpc-released").dream_mpc),
    "dream-mpc after": PAPER | {"iterations": 3, "choose_by": "after"},
    "dream-mpc fixed": PAPER | {"latent_noise": "fixed"},
    "policy-grad-mpc": {},
    "grad-mpc": {"candidates": 100, "iterations": 3},
    "cem": {"candidates": 200, "elites": 20, "iterations": 3},
    "cem kept": {"candidates": 200, "elites": 20, "iterations": 3, "reuse": 0.5, "objective": "return"},
    "mppi": {},
    "policy": {},
    "policy sampled": {"sample": True},
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("batch", [1, 4])
def test_captured_acting_is_eager_acting(name, batch):
    check_acting(name, batch)


@pytest.mark.parametrize("name", ["dream-mpc", "cem", "mppi", "policy sampled"])
def test_captured_acting_is_eager_acting_for_v3(name):
    check_acting(name, 4, **V3)


def test_an_agent_has_a_graph_for_the_mode_and_another_for_samples():
    agent, _ = make_pair(bf16=False)
    image, first = random_batch(1).image[0, :2], torch.ones(2, dtype=torch.bool, device="cuda")
    taken = {False: [], True: []}
    for t in range(8):
        for sample, actions in taken.items():
            torch.manual_seed(t // 4)
            planner = make_planner("policy", sample=sample)
            act = agent.act(planner, agent.initial(2), image, first)
            actions.append(act.action.clone())
            mode = agent.model.policy(act.carry.state).mode
            assert torch.allclose(mode, actions[-1], rtol=2e-3, atol=2e-3) == (not sample), t
    for actions in taken.values():
        torch.testing.assert_close(actions[4], actions[7], rtol=2e-3, atol=2e-3)


def test_a_player_acts_through_the_captured_step():
    """What it checks of a plan's numbers comes after the step: a recording must not look at them."""
    players = [Player(agent, make_planner("policy"), (64, 64, 3)) for agent in make_pair(bf16=False)]
    images = random_batch(1).image[: graphs.WARMUP_CALLS + 3, :2].cpu().numpy()
    for image in images:
        captured, eager = (player(image) for player in players)
        assert abs(captured - eager).max() < 2e-3


def check_acting(name, batch, **settings):
    captured, eager = make_pair(bf16=False, **settings)
    planner = make_planner(name.split()[0], **PLANS[name])
    carries = [captured.initial(batch), eager.initial(batch)]
    images = random_batch(1).image[:, :batch]
    for t in range(8):  # three warm-up calls, the recording, and four replays
        is_first = torch.tensor([t == 0] + [t == 5] * (batch - 1), device="cuda")
        actions = []
        for i, agent in enumerate((captured, eager)):
            torch.manual_seed(t)
            action, carries[i], *_ = agent.act(planner, carries[i], images[t], is_first, 0.1)
            actions.append(action)
        torch.testing.assert_close(*actions, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(carries[0].state, carries[1].state, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("settings", [{}, {"behavior": None}, V3], ids=["dreamer", "planet", "v3"])
def test_captured_update_is_eager_update(settings):
    captured, eager = make_pair(bf16=False, **settings)
    for step in range(8):
        batch = random_batch(step)
        metrics = []
        for agent in (captured, eager):
            torch.manual_seed(step)
            metrics.append(agent.update(batch).metrics)
        for name in metrics[0]:
            torch.testing.assert_close(metrics[0][name], metrics[1][name], rtol=2e-2, atol=2e-2, msg=f"{step} {name}")
    for (name, p), q in zip(captured.model.named_parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=4e-3, msg=name)


def test_streams_have_the_priorities_that_were_asked_for():
    """Also the own stream of a graph, while it is recorded."""
    found = {}

    def note(x):
        found["own"] = torch.cuda.current_stream().priority
        for lane in PRIORITIES:
            aside = Aside(x.device, lane)
            with aside:
                found[lane] = torch.cuda.current_stream().priority
                y = x + 1
            aside.join()
        return y

    captured, x = Captured(note), torch.zeros(3, device="cuda")
    for _ in range(5):
        y = captured(x)
    assert found == PRIORITIES | {"own": OWN} and bool((y == 1).all())


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("preset, length, rows", [("default", 50, 50), ("v3", 64, 16)])
def test_streams_change_no_numbers(preset, length, rows, capture, monkeypatch):
    """Five updates of the preset's size, three of them before a graph is recorded, beside each other and in sequence.

    Memory that is taken before another stream has read it shows here.
    """
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    config, found, first = load_presets(preset), [], [(0, 0), (9, 3), (length - 5, 7)]
    batches = [make_batch(seed, length, rows, ACTION_DIM, first, "cuda") for seed in range(5)]
    for beside in (True, False):
        with monkeypatch.context() as patch:
            if not beside:
                patch.setattr(graphs, "PRIORITIES", dict.fromkeys(PRIORITIES))
            torch.manual_seed(0)
            settings = config.world_model, config.behavior, config.optimizer
            agent = Dreamer(ACTION_DIM, *settings, device="cuda:0", capture=capture)
            updates = [agent.update(batch) for batch in batches]
        found.append([*(x for u in updates for x in (*u.metrics.values(), u.states)), *agent.model.parameters()])
        del agent
    assert_near(*found, 1e-4)


def test_bf16_is_near_fp32():
    losses = []
    for bf16 in (True, False):
        torch.manual_seed(0)
        agent = Dreamer(ACTION_DIM, device="cuda:0", capture=False, bf16=bf16)
        torch.manual_seed(1)
        losses.append(agent.update(random_batch(0)).metrics["model_loss"])
        assert all(p.dtype == torch.float32 for p in agent.model.parameters())
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("settings", [{}, V3], ids=["dreamer", "v3"])
def test_update_does_not_synchronise(settings, capture):
    agent = Dreamer(ACTION_DIM, device="cuda:0", capture=capture, **settings)
    batch = random_batch(0)
    for _ in range(5):
        agent.update(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        agent.update(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("bf16", [False, True])
def test_the_block_scan_is_the_loop(bf16):
    """In fp32 states, posterior and gradients are the loop's; with bf16 they are near, where no sample differs."""
    torch.manual_seed(0)
    rssm = BlockRSSM(ACTION_DIM, 40, deter=192, stoch=12, classes=6, hidden=48, blocks=8).cuda()
    embed, action = torch.randn(9, 8, 40, device="cuda"), torch.randn(9, 8, ACTION_DIM, device="cuda")
    is_first = torch.rand(9, 8, device="cuda") < 0.2
    precision, found = torch.get_float32_matmul_precision(), []
    torch.set_float32_matmul_precision("highest")
    try:
        for kernels in (True, False):
            rssm.kernels, rssm.bf16 = kernels, bf16 and kernels
            torch.manual_seed(1)
            states, posterior = rssm.observe(embed, action, is_first)
            torch.manual_seed(2)
            value = (states * torch.randn_like(states)).sum() + (posterior * torch.randn_like(posterior)).sum()
            parts = [p for name, p in rssm.named_parameters() if not name.startswith("prior")]
            found.append((states, posterior, torch.autograd.grad(value, parts)))
    finally:
        torch.set_float32_matmul_precision(precision)
    (states, posterior, grads), (loop_states, loop_posterior, loop_grads) = found
    if bf16:
        torch.testing.assert_close(posterior[0], loop_posterior[0], rtol=0.1, atol=0.1)
        return
    torch.testing.assert_close(states, loop_states, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(posterior, loop_posterior, rtol=1e-3, atol=1e-4)
    for got, expected in zip(grads, loop_grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())


@pytest.mark.parametrize("channels", [(8, 12, 16, 16), (8, 12, 64, 64), (16, 12, 8)])
def test_v3_s_convolutions_on_the_gpu_are_those_on_the_cpu(channels, full_fp32):
    """Both go through blocks of pixels on a GPU, the first and the last layer through channels that are filled up.

    Layers of an encoder with 64 channels go through pixels.
    """
    torch.manual_seed(0)
    encoder = len(channels) == 4
    net = NormEncoder(channels) if encoder else NormDecoder(64, 24, 32, 8, 256, channels)
    x = torch.randint(256, (6, 64, 64, 3), dtype=torch.uint8) if encoder else torch.randn(6, 88)
    results = []
    for device in ("cuda", "cpu"):
        net, given = net.to(device), x.to(device)
        inputs = [given.requires_grad_()] if given.is_floating_point() else []
        y = net(given)
        weight = torch.linspace(-1, 1, y.numel(), device=device).view_as(y)
        grads = torch.autograd.grad((y * weight).sum(), [*inputs, *net.parameters()])
        results.append([x.cpu() for x in (y, *grads)])
    assert_near(*results, 1e-3)


def test_pixels_in_blocks_on_the_gpu_are_those_on_the_cpu():
    image = torch.randint(256, (3, 6, 10, 3), dtype=torch.uint8)
    on_gpu = pixels.centred_blocks(image.cuda(), torch.float32).cpu()
    torch.testing.assert_close(on_gpu, pixels.centred_blocks(image, torch.float32), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps, ends", [(15, True), (63, True), (15, False)])
def test_lambda_returns_on_the_gpu_are_those_on_the_cpu(steps, ends):
    r, v, g = torch.randn(3, steps, 40, 5)
    inputs, found = [r, v] + [torch.rand(steps, 40, 5)] * ends, []
    for device in ("cuda", "cpu"):
        given = [x.to(device).requires_grad_() for x in inputs]
        y = lambda_return(*given[:2], 0.99, 0.95, *given[2:])
        found.append([x.cpu() for x in (y, *torch.autograd.grad(y, given, g.to(device)))])
    assert_near(*found, 1e-5)


def test_blocks_round_v3_s_encoder_to_bf16_no_more_than_plain_layers_do(full_fp32, monkeypatch):
    torch.manual_seed(0)
    image = torch.randint(256, (32, 64, 64, 3), dtype=torch.uint8, device="cuda")
    net = NormEncoder((32, 48, 64, 64)).cuda()
    g, found = torch.randn(32, net.outputs, device="cuda"), []
    for bf16, used in ((False, False), (True, False), (True, True)):
        for module in (norm_encoder, pooled_norm):
            monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
            y = net(image)
        found.append([y, *torch.autograd.grad(y, list(net.parameters()), g.to(y.dtype))])
    for exact, plain, blocks in zip(*found, strict=True):
        rounding, error = ((x.double() - exact.double()).norm() for x in (plain, blocks))
        assert error < 1.5 * rounding + 1e-3 * exact.norm()


@pytest.mark.parametrize(
    "make", [lambda: NormDecoder(64, 24, 32, 8, 256, (16, 12, 8)), lambda: Decoder(88, 48, (16, 12, 8))]
)
def test_the_decoder_s_error_on_the_gpu_is_that_on_the_cpu(make, full_fp32):
    torch.manual_seed(0)
    net, state, image = make(), torch.randn(2, 3, 88), torch.rand(2, 3, 3, 64, 64)
    results = []
    for device in ("cuda", "cpu"):
        net, given = net.to(device), state.to(device).requires_grad_()
        error = net.error(given, image.to(device))
        grads = torch.autograd.grad((error * torch.arange(1.0, 4, device=device)).sum(), [given, *net.parameters()])
        results.append([x.cpu() for x in (error, *grads)])
    assert_near(*results, 1e-3)


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("kind", [NormMLP, partial(NormEnsemble, members=3)])
@pytest.mark.parametrize("rows", [50, 512])
def test_v3_s_perceptrons_on_the_gpu_are_those_on_the_cpu(rows, kind, filled, full_fp32):
    torch.manual_seed(0)
    net, x, results = kind(20, 48, 3, 13, filled=filled), torch.randn(4, rows, 20), []
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for device in ("cuda", "cpu"):
        net, given = net.to(device), x.to(device).requires_grad_()
        y = net(given)
        assert y.shape[-1] == (16 if filled and device == "cuda" else 13)
        y = y[..., :13]
        g = torch.linspace(-1, 1, y.numel(), device=device).view_as(y)
        results.append([x.cpu() for x in (y, *torch.autograd.grad(y, [given, *net.parameters()], g))])
    assert_near(*results, 1e-4)


def test_autocast_and_tf32_do_not_round_a_head_s_outputs_to_bf16(full_fp32):
    torch.manual_seed(0)
    net, x = NormMLP(64, 256, 1, 255, filled=True).cuda(), torch.randn(600, 64, device="cuda")
    torch.set_float32_matmul_precision("high")
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        hidden, y = net.hidden[0](x, torch.float32), net(x)
    assert hidden.dtype == y.dtype == torch.float32
    exact = hidden.double() @ net.last.weight.double().t() + net.last.bias.double()
    error = (y[..., :255].double() - exact).abs().max().item()
    assert error < 1e-3 * exact.abs().max().item(), "bf16 would round by up to 2e-3"


def test_a_head_and_its_loss_on_the_gpu_are_those_on_the_cpu(full_fp32):
    """Rows of 255 logits are filled up to 256 there; parameters and their gradients are not."""
    torch.manual_seed(0)
    critic, x, target = TwoHotCritic(20, heads=3, layers=2, hidden=32), torch.randn(6, 200, 20), 9 * torch.randn(5, 200)
    results = []
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for device in ("cuda", "cpu"):
        critic, given = critic.to(device), x.to(device).requires_grad_()
        predicted = critic.predict(given)
        loss = predicted._replace(logits=predicted.logits[:, :-1]).loss(target.to(device))
        g = torch.linspace(-1, 1, loss.numel(), device=device).view_as(loss)
        grads = torch.autograd.grad(loss, [given, *critic.parameters()], g, retain_graph=True)
        slopes = torch.autograd.grad(predicted.mean.sum(), given)
        assert [grad.shape for grad in grads[1:]] == [p.shape for p in critic.parameters()]
        results.append([x.detach().cpu() for x in (loss, *grads, *slopes)])
    assert_near(*results, 1e-3)


def test_distributions_over_bins_on_the_gpu_are_those_on_the_cpu():
    torch.manual_seed(0)
    leaf, slow, g = 2 * torch.randn(3, 5, 40, 255), 30 * torch.randn(3, 4, 40), torch.randn(3, 4, 40)
    target, bins, results = 300 * torch.randn(4, 40), symexp_bins(), []
    leaf[..., :100] -= 30
    leaf[..., -100:] -= 30
    for device in ("cuda", "cpu"):
        logits = leaf.to(device).requires_grad_()
        predicted = TwoHot(logits[:, :-1], bins.to(device))
        loss = predicted.loss(target.to(device), slow.to(device), 0.7)
        means = [TwoHot(logits.detach(), predicted.bins, readout).mean for readout in ("real", "symlog")]
        grads = torch.autograd.grad(loss, logits, g.to(device))
        results.append([x.cpu() for x in (loss, *grads, *means)])
    assert_near(*results, 1e-4)


def test_a_perceptron_of_many_rows_is_that_of_single_steps(full_fp32):
    torch.manual_seed(0)
    mlp, x = NormMLP(20, 32, 2, 12).cuda(), torch.randn(5, 600, 20, device="cuda")
    g, results = torch.randn(5, 600, 12, device="cuda"), []
    for y in (mlp(x), torch.stack([mlp(step) for step in x])):
        results.append((y, *torch.autograd.grad(y, list(mlp.parameters()), g)))
    assert_near(*results, 1e-5)


def test_a_walk_is_the_loop_of_steps_with_its_gradients(full_fp32):
    torch.manual_seed(0)
    rssm = BlockRSSM(ACTION_DIM, 40, deter=192, stoch=12, classes=6, hidden=48, blocks=8).cuda()
    state, actions = torch.randn(7, 264, device="cuda"), torch.rand(4, 7, ACTION_DIM, device="cuda")
    noise, g, found = torch.randn(4, 7, 72, device="cuda"), torch.randn(4, 7, 264, device="cuda"), []
    for fast in (True, False):
        leaf = actions.clone().requires_grad_()
        if fast:
            states = rssm.differentiable_states(state, leaf, rssm.walk(state, lambda k, _: actions[k], noise, True)[1])
        else:
            states, now = [], state
            for k in range(4):
                now = rssm.prior_step(now, leaf[k], noise[k])
                states.append(now)
            states = torch.stack(states)
        found.append((states, *torch.autograd.grad(states, leaf, g)))
    assert_near(*found, 1e-3)


def test_a_block_scan_without_teams_is_its_torch_form(monkeypatch, full_fp32):
    sizes, found = ScanSizes(deter=192, hidden=48), []
    for used in (True, False):
        for module in (norm, block_cell):
            monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
        found += scan_both(monkeypatch, sizes, 4, 70, device="cuda", kinds=(False,))
    assert_near(*found, 1e-4)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sizes", [(5, 3, 7, 6, 5), (1024, 8, 256, 32, 16), (77, 8, 48, 12, 6)])
def test_the_parts_of_a_step_are_their_torch_forms_on_rows_that_lie_apart(sizes, bf16, monkeypatch):
    """What they write as states is bit for bit what they return."""
    torch.manual_seed(0)
    (rows, blocks, units, variables, classes), product = sizes, torch.bfloat16 if bf16 else torch.float32
    deter, draws = blocks * units, variables * classes
    wide = torch.randn(rows, 3 * deter + 9, device="cuda")
    before, g = wide[:, 3 : 3 + deter], wide[:, deter + 5 : 2 * deter + 5]
    layers = [wide[:, place : place + units].to(product) for place in (1, units + 2, 2 * units + 5)]
    gains = torch.rand(2, units, device="cuda") + 0.5
    gates = torch.randn(blocks, rows, 3 * units, device="cuda").to(product)
    bias = torch.randn(blocks, 1, 3 * units, device="cuda").to(product)
    logits, noise = torch.randn(rows, draws, device="cuda"), torch.randn(rows, variables, classes, device="cuda")
    for precision in (torch.float32, torch.bfloat16):
        found = []
        for used in (True, False):
            for module in (norm, block_cell):
                monkeypatch.setattr(module, "fuses", lambda x, used=used: used)
            states = torch.zeros(rows, deter + draws + 5, dtype=precision, device="cuda")
            into = states[:, 2 : 2 + deter], states[:, 3 + deter : -2]
            new, cast = block_cell.gru(gates, bias, before, into[0])
            stoch = block_cell.draw_into(into[1], logits, 1e3 * noise, 0.01, product)
            assert (new.dtype, cast.dtype, stoch.dtype) == (torch.float32, product, product)
            assert torch.equal(into[0], new.to(precision)) and torch.equal(into[1], stoch.to(precision))
            assert torch.equal(cast, new.to(product)) and not states[:, [0, 1, deter + 2, -2, -1]].any()
            back = block_cell.gru_backward(g, gates, bias, before)
            found.append((new, stoch, block_cell.share(*layers, *gains, 1e-4), *back))
        assert_near(*[[x.float() for x in each] for each in found], 1e-2 if bf16 else 1e-5)


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("sizes", [(1024, 8, 256), (80, 8, 256), (40, 8, 24), (300, 3, 75)])
def test_gates_and_what_becomes_of_them_are_their_torch_forms(sizes, save, monkeypatch):
    """In one kernel, on rows that lie apart."""
    torch.manual_seed(0)
    (rows, blocks, units), found = sizes, []
    size = blocks * units
    rssm = BlockRSSM(ACTION_DIM, 5, deter=size, stoch=2, classes=3, hidden=8, blocks=blocks, bf16=True).cuda()
    weights = rssm._constants().cell
    weights.gates_bias.normal_()
    wide = torch.randn(rows, 2 * size + 8, device="cuda")
    hidden, before = wide[:, :size].bfloat16(), wide[:, size + 8 :]
    for used in (True, False):
        monkeypatch.setattr(block_cell, "fuses", lambda x, used=used: used)
        monkeypatch.setattr(block_cell, "_added_bias", lambda w, x: w.gates_bias)
        for precision in (torch.float32, torch.bfloat16):
            states = torch.zeros(rows, size + 16, dtype=precision, device="cuda")
            gates, new, given = block_cell.gated(hidden, weights, before, states[:, 8:-8], save)
            assert torch.equal(states[:, 8:-8], new.to(precision)) and torch.equal(given, new.bfloat16())
            assert not states[:, :8].any() and not states[:, -8:].any() and (gates is None) == (used and not save)
        found.append([new, *([gates.float()] if save else [])])
    assert_near(*found, 1e-2)


def test_gumbel_noise_on_the_gpu_is_that_on_the_cpu():
    noise = torch.cat([torch.linspace(-11, 11, 200_001), torch.tensor([torch.inf, -torch.inf])])
    torch.testing.assert_close(gumbel(noise.cuda()).cpu(), gumbel(noise), rtol=1e-5, atol=1e-5)
    assert gumbel(torch.full((3,), torch.nan, device="cuda")).isnan().all()


def either_way(name, function, monkeypatch):
    """What `function` gives with a kernel of `row_layers_triton.py`, and with the launches that it replaces."""
    kernels, runs, found = block_walk.kernels, [], []
    kernel = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *given: runs.append(name) or kernel(*given))
    for used in (True, False):
        if not used:
            monkeypatch.setattr(kernels, f"fits_{name}", lambda *given: False)
        found.append(function())
    assert runs == [name]
    return found


V3_SIZES, SMALL_SIZES, ODD_SIZES = (1024, 256, 32, 16, 6), (37, 64, 16, 8, 1), (133, 75, 6, 5, 21)  # and actions


@pytest.mark.parametrize("bf16, sizes", [(True, V3_SIZES), (True, SMALL_SIZES), (True, ODD_SIZES), (False, ODD_SIZES)])
def test_the_prior_s_draws_are_those_of_its_layers(bf16, sizes, monkeypatch, full_fp32):
    """On what one product gives for two layers, into memory of either precision; what the way back needs as well."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if bf16 else "highest")
    (rows, width, variables, classes, _), product = sizes, torch.bfloat16 if bf16 else torch.float32
    layer, gains = torch.randn(width, width, device="cuda") / width**0.5, torch.rand(2, width, device="cuda") + 0.5
    last = torch.randn(variables * classes, width, device="cuda")
    bias, last_bias = (0.3 * torch.randn(n, device="cuda") for n in (width, variables * classes))
    weights = (None, None, gains[0], layer.to(product), bias.to(product), gains[1], last, last_bias)
    pre = torch.randn(rows, 2 * width, device="cuda").to(product)[:, :width]
    noise = 1e3 * torch.randn(rows, variables, classes, device="cuda")
    for precision, save in [(torch.bfloat16, False), (torch.float32, True)]:

        def draw(precision=precision, save=save):
            states = torch.zeros(rows, variables * classes + 7, dtype=precision, device="cuda")
            given = (pre, block_walk.PriorWeights(*weights), noise, 0.01, 1e-4, states[:, 7:])
            stoch, *products = block_walk.draw_prior(*given, save=save)
            assert torch.equal(stoch.float(), states[:, 7:].float()) and not states[:, :7].any()
            return stoch.float(), *(x.float() for x in products if save)

        with monkeypatch.context() as patch:
            (got, *products), (expected, *others) = either_way("prior", draw, patch)
        assert torch.equal(got, expected) and (expected.sum(-1) == variables).all()
        assert len(products) == 2 * save
        assert_near(products, others, 2e-2 if bf16 else 1e-4)


@pytest.mark.parametrize("bf16, sizes", [(True, V3_SIZES), (True, SMALL_SIZES), (True, ODD_SIZES), (False, ODD_SIZES)])
def test_the_inputs_of_a_step_are_those_of_their_layers(bf16, sizes, monkeypatch, full_fp32):
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if bf16 else "highest")
    rows, width, variables, classes, actions = sizes
    settings = {"deter": 8, "stoch": variables, "classes": classes, "hidden": width, "bf16": bf16}
    rssm = BlockRSSM(actions, 5, **settings).cuda()
    with torch.no_grad():
        for parameter in rssm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights = rssm._constants()
    product, wide = weights.cell.own.dtype, torch.randn(rows, 2 * width + variables * classes, device="cuda")
    deter_pre, stoch = wide[:, :width].to(product), wide.to(product)[:, 2 * width :]
    action = 2 * torch.randn(rows, actions, device="cuda")
    for save in (True, False):

        @torch.no_grad()
        def enter(save=save):
            return block_walk._enter(deter_pre, stoch, action, rssm._moved, weights, 1e-4, save)

        with monkeypatch.context() as patch:
            got, expected = either_way("inputs", enter, patch)
        assert (got.stoch_pre is None) != save
        assert_near([got.shared.float()], [expected.shared.float()], 1e-2 if bf16 else 1e-5)
        if save:
            assert_near([got.stoch_pre.float()], [expected.stoch_pre.float()], 1e-2 if bf16 else 1e-5)


@pytest.mark.parametrize("bf16, sizes", [(True, V3_SIZES), (True, SMALL_SIZES), (True, ODD_SIZES), (False, ODD_SIZES)])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_policy_s_samples_are_those_of_its_gaussian(layers, bf16, sizes, monkeypatch, full_fp32):
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if bf16 else "highest")
    rows, width, *_, actions = sizes
    actor = NormalActor(300, actions, layers, width, scale=1.0).cuda()
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = torch.randn(rows, 300, device="cuda").to(torch.bfloat16 if bf16 else torch.float32)
    noise, sample = torch.randn(rows, actions, device="cuda"), actor.sampler(bf16)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        got, expected = either_way("policy", lambda: sample(state, noise), monkeypatch)
    assert_near([got], [expected], 2e-2 if bf16 else 1e-4)


@pytest.mark.parametrize("rows", [(1,), (3, 50), (130,)])
def test_a_policy_s_rollout_on_the_gpu_is_that_on_the_cpu(rows, full_fp32):
    """The noise decides every draw, so that rounding changes none."""
    torch.manual_seed(0)
    model = make_latents(V3["behavior"], make_world_model(V3["world_model"], ACTION_DIM, True, False), ACTION_DIM, True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state, noise, results = torch.randn(*rows, 264), 9 * torch.randn(*rows, 4, 72), []
    for device in ("cuda", "cpu"):
        model = model.to(device)
        with torch.no_grad():
            found = policy_rollout(model, state.to(device), 4, noise=noise.to(device), mode=True)
            policy = model.policy(found.states)
        results.append([x.cpu() for x in (joined(found.leaves), found.states, policy.mean, policy.std)])
    assert_near(*results, 1e-3)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_captured_imagination_is_the_eager_one(bf16):
    torch.manual_seed(0)
    world_model = make_world_model(V3["world_model"], ACTION_DIM, True, bf16)
    model = make_latents(V3["behavior"], world_model, ACTION_DIM, True).cuda()
    precision = torch.bfloat16 if bf16 else torch.float32

    @torch.no_grad()
    def imagined(state):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
            path = torch.empty(4, *state.shape, dtype=precision, device="cuda")
            return closed_loop(model, state, 3, lambda now: model.policy(now).sample(), path=path).states

    captured = Captured(imagined)
    for seed in range(6):  # three warm-up calls, the recording, and two replays
        found, state = [], torch.randn(40, 264, device="cuda")
        for function in (captured, imagined):
            torch.manual_seed(seed)
            found.append(function(state))
        assert found[0].dtype == precision and found[0].isfinite().all()
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_laprop_on_the_gpu_is_that_on_the_cpu():
    results = []
    for device in ("cuda", "cpu"):
        torch.manual_seed(0)
        shapes = [(700, 11), (1,), (64, 3, 5, 5), *[(k,) for k in range(1, 150)]]  # in several launches
        params = [torch.nn.Parameter((torch.randn(shape) * 3).to(device)) for shape in shapes]
        optimizer, norms = LaProp(params, lr=0.02, warmup=2), []
        for step in range(6):
            for p in params:
                g = torch.randn(p.shape)
                p.grad = (torch.full_like(g, torch.nan) if step == 3 else g).to(device)
            norms.append(optimizer.grad_norm().nan_to_num())
            optimizer.found_inf = torch.tensor(float(step == 3), device=device)
            optimizer.step()
        results.append([x.cpu() for p in params for x in (p.detach(), *optimizer.state[p].values())])
        results[-1] += [norm.cpu() for norm in norms]
    assert_near(*results, 1e-4)


def test_laprop_steps_equal_numbers_equally_wherever_they_stand():
    """Bit for bit: a compiler may round the sum of two products in two ways."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.full((size,), value.item(), device="cuda"))
              for size, value in zip((4096, 9000, 255, 3), torch.randn(4))]  # fmt: skip
    optimizer = LaProp(params, lr=0.02, warmup=0)
    for _ in range(20):
        for p in params:
            p.grad = torch.randn((), device="cuda").expand(p.shape).clone()
        optimizer.step()
    for p in params:
        for x in (p.detach(), optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]):
            assert (x == x[0]).all()


def test_mirror_images_of_bins_that_were_never_a_target_stay_equal():
    """Bit for bit: they stand at up to 4.9e8 on both sides of 0, where a difference in the last digit is read as noise."""
    torch.manual_seed(0)
    agent = Dreamer(
        ACTION_DIM, device="cuda:0", **V3 | {"optimizer": OptimizerConfig(kind="laprop", warmup=0, lr=1e-4)}
    )
    for seed in range(30):
        agent.update(random_batch(seed))
    reward, value = agent.model.world_model.reward_head.last, agent.model.critic.layers.last
    for bins_last in (reward.weight.t(), reward.bias, value.weight, value.bias):
        outer = bins_last.detach()[..., :60]  # beyond +-3.9e4
        assert outer.any() and torch.equal(outer, bins_last.detach().flip(-1)[..., :60])


def test_captured_plans_follow_the_weights():
    """A graph reads the parameters in place, so an update changes the next action."""
    agent = Dreamer(ACTION_DIM, device="cuda:0")
    planner, carry, image = make_planner("policy"), agent.initial(1), random_batch(0).image[0, :1]
    first = torch.ones(1, dtype=torch.bool, device="cuda")

    def act():
        torch.manual_seed(0)
        return agent.act(planner, carry, image, first).action

    for _ in range(5):
        before = act()
    with torch.no_grad():
        for p in agent.model.actor.parameters():
            p.add_(0.05)
    assert not torch.allclose(before, act())


def test_nonfinite_update_is_skipped():
    agent = Dreamer(ACTION_DIM, device="cuda:0")
    batch = random_batch(0)
    for _ in range(5):
        agent.update(batch)
    before = [p.clone() for p in agent.model.parameters()]
    metrics = agent.update(batch._replace(reward=batch.reward * torch.nan)).metrics
    assert metrics["skipped"].item() == 1
    assert all(torch.equal(p, q) for p, q in zip(agent.model.parameters(), before, strict=True))
    assert agent.update(batch).metrics["skipped"].item() == 0


@pytest.fixture
def full_fp32():
    """Products in float32, not TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_on_a_gpu_the_cell_s_kernel_walks():
    """The tests below choose the kernel by this function."""
    assert cell._on_gpu(torch.zeros(1, device="cuda"), 200, 30, 200, 6, 200)
    assert not cell._on_gpu(torch.zeros(1), 200, 30, 200, 6, 200)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 50, 500, 2500])  # teams of 13 for few rows, of 4, and none
def test_the_cell_s_kernel_is_the_loop(kind, rows, full_fp32, monkeypatch):
    assert_near(*walk_both(kind, rows, monkeypatch, device="cuda"), 1e-5)


@pytest.mark.parametrize("kind", ["observe", "policy"])
def test_the_cell_s_kernel_takes_other_sizes(kind, full_fp32, monkeypatch):
    sizes = Sizes(deter=52, stoch=9, hidden=60, action=5, units=45, layers=2)
    assert_near(*walk_both(kind, 20, monkeypatch, sizes=sizes, device="cuda"), 1e-5)


@pytest.mark.parametrize("kind", ["observe", "policy"])
@pytest.mark.parametrize("rows", [50, 2500])
def test_bf16_products_in_the_cell_are_near_fp32(kind, rows, monkeypatch):
    assert_near(*walk_both(kind, rows, monkeypatch, bf16=True, device="cuda"), 2e-2)


def test_teams_agree_every_time(monkeypatch):
    """If a program of a team read too early, the result would change from run to run."""
    settings = {"bf16": True, "steps": 50, "device": "cuda"}
    first = walk_both("policy", 50, monkeypatch, **settings)[0]
    for _ in range(5):
        again = walk_both("policy", 50, monkeypatch, **settings)[0]
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("act", ["none", "relu", "elu"])
@pytest.mark.parametrize(
    "layout",
    [fused.SAME, fused.Layout("to_blocks", 6, 4, 2), fused.Layout("from_blocks", 4, 4, 2, 7),
     fused.Layout("from_blocks", 4, 4, 4, 16)],
)  # fmt: skip
def test_bias_act_on_the_gpu_is_that_on_the_cpu(act, layout):
    torch.manual_seed(0)
    members = 3 if layout is fused.SAME else 1
    y, bias = torch.randn(members, 960, 48), torch.randn(members, 48)
    results = []
    for device in ("cuda", "cpu"):
        leaves = [x.to(device).requires_grad_() for x in (y, bias)]
        out = fused.bias_act(leaves[0] * 1, leaves[1], act, layout)
        weight = torch.linspace(-1, 1, out.numel(), device=device).view_as(out)
        results.append([x.cpu() for x in (out, *torch.autograd.grad((out * weight).sum(), leaves))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_encoder_on_the_gpu_is_that_on_the_cpu(bf16, full_fp32):
    torch.manual_seed(0)
    net, image, results = Encoder(), torch.rand(9, 64, 64, 3) - 0.5, []
    for device in ("cuda", "cpu"):
        net = net.to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16 and device == "cuda"):
            y = net(image.to(device).movedim(-1, -3))
        g = torch.linspace(0.5, 1.5, y.numel(), device=device).view_as(y).to(y.dtype)
        results.append([x.float().cpu() for x in (y, *torch.autograd.grad(y, list(net.parameters()), g))])
    assert_near(*results, 1e-1 if bf16 else 1e-4)  # four layers of rounded numbers, and back: 6e-2 of the first weight


@pytest.mark.parametrize("make", [lambda: MLP(230, 200, 2, 1), lambda: MLP(230, 200, 4, 6), lambda: Critic(230, 5)])
def test_heads_in_bf16_are_near_those_on_the_cpu(make):
    torch.manual_seed(0)
    net, x, results = make(), torch.randn(7, 300, 230), []
    for device in ("cuda", "cpu"):
        net, given = net.to(device), x.to(device).requires_grad_()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            y = net(given)
        assert y.dtype == torch.float32
        g = torch.linspace(0.5, 1.5, y.numel(), device=device).view_as(y)
        results.append([x.cpu() for x in (y, *torch.autograd.grad(y, [given, *net.parameters()], g))])
    assert_near(*results, 3e-2)


def test_the_kl_of_gaussians_on_the_gpu_is_that_on_the_cpu():
    torch.manual_seed(0)
    leaves, g, found = [torch.randn(50, 7, 60) for _ in range(2)], torch.linspace(-1, 2, 350).view(50, 7), []
    for device in ("cuda", "cpu"):
        given = [x.to(device).requires_grad_() for x in leaves]
        p, q = (Gaussian(mean, raw.exp()) for mean, raw in (x.chunk(2, dim=-1) for x in given))
        value = gaussian_kl(p, q)
        found.append([x.cpu() for x in (value, *torch.autograd.grad(value, given, g.to(device)))])
    assert_near(*found, 1e-5)


def test_images_are_dequantised_as_on_the_cpu():
    image = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8, device="cuda")
    x = preprocess(image, dequantize=True).movedim(-3, -1)
    level = (image >> 3).float()
    noise = (x + 0.5) * 32 - level
    assert noise.min() > -1e-5 and noise.max() < 1 + 1e-5 and 0.2 < noise.std() < 0.4


def test_the_world_model_s_loss_with_kernels_is_the_plain_one(full_fp32):
    results = []
    for kernels in (True, False):
        torch.manual_seed(0)
        world = GaussianWorldModel(WorldModelConfig(), ACTION_DIM, kernels).cuda()
        torch.manual_seed(1)
        batch, amp = random_batch(0), torch.autocast("cuda", enabled=False)
        inference = world.infer(batch, amp)
        loss, metrics = world.loss(batch, inference, amp)
        gradients = torch.autograd.grad(loss, list(world.parameters()))
        results.append([loss, inference.states, *metrics.values(), *gradients])
    assert_near(*results, 1e-3)


def test_the_behavior_s_gradients_with_kernels_are_near_the_plain_ones():
    """Both draw different noise, but gradients averaged over many rows agree in direction."""
    gradients = []
    for kernels in (True, False):
        torch.manual_seed(0)
        agent = Dreamer(ACTION_DIM, device="cuda:0", capture=False, kernels=kernels)
        states = torch.randn(40, 100, agent.state_dim, device="cuda")
        found = agent.learner.learn(states, make_batch(0, 40, 100, ACTION_DIM, device="cuda")).gradients
        gradients.append({name: torch.cat([g.flatten() for g in grads]) for name, grads in found.items()})
    for name in gradients[0]:
        cosine = torch.cosine_similarity(gradients[0][name], gradients[1][name], dim=0)
        assert cosine > 0.9, f"{name}: {cosine}"


def test_rounded_imagination_is_imagination_rounded_and_filled_up():
    torch.manual_seed(0)
    model = Dreamer(ACTION_DIM, device="cuda:0", capture=False).model
    start, found = torch.randn(60, model.world_model.state_dim, device="cuda"), []
    for rounded in (True, False):
        torch.manual_seed(1)
        states = imagine(model, start, 5, rounded)
        parts = states[..., : start.shape[-1]]
        g = torch.linspace(-1, 1, parts.numel(), device="cuda").view_as(parts).to(parts.dtype)
        found.append((states, torch.autograd.grad(parts, list(model.actor.parameters()), g)))
    (rounded, grads), (exact, expected) = found
    assert rounded.shape[-1] % 8 == 0 and not rounded[..., exact.shape[-1] :].any()
    assert torch.equal(rounded[..., : exact.shape[-1]], exact.bfloat16())
    assert_near(grads, expected, 2e-2)


def test_a_run_on_the_gpu_is_stopped_and_resumed(tmp_path, monkeypatch):
    """Graphs are recorded again; replay, carry and generator are restored from the host."""
    import os
    import signal

    import run
    from dreamer_mpc.runs.checkpoint import load_checkpoint
    from dreamer_mpc.training.trainer import Trainer

    args = [*TINY, "--env-steps", "96", "--num-envs", "2", "--planner", "dream-mpc", "--replay.storage", "gpu"]
    advance = Trainer._advance

    def stopped(self, due):
        if self.counters.env_steps == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self, due)

    monkeypatch.setattr(Trainer, "_advance", stopped)
    assert run.main([*args, "--run-dir", str(tmp_path / "run")]) == 0
    monkeypatch.undo()
    before = load_checkpoint(tmp_path / "run")
    assert before.counters.env_steps == 42 and before.random["cuda"] is not None
    assert run.main(["--resume", str(tmp_path / "run")]) == 0
    after = load_checkpoint(tmp_path / "run")
    assert after.counters.env_steps == 96 and after.training["finished"]
    assert after.counters.updates == 1 + (96 - 8) // 8
    assert after.replay["written"].tolist() == [8 + 1 + 44 + 6, 44 + 6], "one seed episode, in the first row alone"


def test_evaluations_beside_training_are_those_of_the_checkpoints(tmp_path):
    """Two processes compute on the GPU; `eval` plays each checkpoint afterwards, alone, from the same seeds."""
    import json

    import run

    folder = tmp_path / "run"
    episodes = ["--eval.every", "24", "--eval.episodes", "4", "--eval.num-envs", "2", "--train.keep-checkpoints", "10"]
    args = [*TINY, "--env-steps", "56", "--num-envs", "2", "--planner", "dream-mpc", *episodes]
    assert run.main([*args, "--run-dir", str(folder)]) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = {row["env_steps"]: row["eval/return_mean"] for row in lines if "eval/return_mean" in row}
    assert len(rows) == 3 and max(rows) == 56
    for env_steps, mean in rows.items():
        checkpoint = folder / "checkpoints" / f"checkpoint-{env_steps:08d}.safetensors"
        out = tmp_path / str(env_steps)
        played = ["eval", "--checkpoint", str(checkpoint), "--planner", "dream-mpc", "--out", str(out), "--no-video"]
        assert run.main([*played, "--episodes", "4", "--num-envs", "2"]) == 0
        [result] = json.loads((out / "eval.json").read_text())["results"]
        assert result["return_mean"] == pytest.approx(mean, rel=0.05), env_steps  # eager at first, a graph later
    assert not list((folder / "checkpoints").glob("evaluating-*"))
