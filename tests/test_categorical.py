"""DreamerV3's world model: its loss and which part learns from which term, images in and out, sequences, learning."""

import dataclasses
import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from dreamer_mpc.networks.norm_mlp import NORM_EPS
from dreamer_mpc.world_model import Batch, CategoricalWorldModel, GaussianWorldModel, WorldModelConfig, make_world_model
from dreamer_mpc.world_model.categorical import barlow_loss
from dreamer_mpc.world_model.protocol import WorldModelProtocol
from tests.support.agents import make_batch

AMP = torch.autocast("cpu", enabled=False)
BF16 = torch.autocast("cpu", dtype=torch.bfloat16)
TINY = WorldModelConfig(
    kind="categorical", continuation=True, deter=12, stoch=4, classes=3, blocks=2, hidden=7,
    encoder_channels=(2, 3, 4, 5), decoder_dense=64, decoder_channels=(4, 3, 2), reward_layers=1, reward_hidden=6,
    free_nats=0.0, image_scale=0.02, reward_scale=0.7, continue_scale=1.3, dyn_scale=0.9, rep_scale=0.2,
    barlow_scale=0.06, barlow_lambda=0.01,
)  # fmt: skip
S = 12 + 4 * 3


def make_world(seed=0, bf16=False, **settings):
    torch.manual_seed(seed)
    return CategoricalWorldModel(dataclasses.replace(TINY, **settings), 2, bf16=bf16)


def terms(world, batch, seed=1, amp=AMP):
    """Total, metrics and inference with the draws of `seed`."""
    torch.manual_seed(seed)
    inference = world.infer(batch, amp)
    return *world.loss(batch, inference, amp), inference


def batch64(**changes):
    """Frames whose rewards are float64; row 0 starts an episode at t = 2, and row 1 is terminal at t = 4."""
    batch = make_batch(first=[(2, 0)])
    is_terminal = batch.is_terminal.clone()
    is_terminal[4, 1] = True
    double = {name: getattr(batch, name).double() for name in ("action", "reward")}
    return batch._replace(is_terminal=is_terminal, **double | changes)


# the loss


def test_the_loss_is_the_weighted_sum_of_its_terms_frame_by_frame():
    world, batch = make_world(free_nats=0.4).double(), batch64()
    torch.nn.init.normal_(world.reward_head.last.weight)
    total, metrics, inference = terms(world, batch)
    length, rows = batch.reward.shape
    posterior, prior = inference.posterior.exp(), world.rssm.prior(inference.states[..., :12]).exp()  # [T, B, K, C]
    sums = dict.fromkeys(["image", "reward", "continue", "kl", "clipped"], 0.0)
    for t in range(length):
        for b in range(rows):
            state = inference.states[t, b]
            image = batch.image[t, b].double().movedim(-1, 0) / 255
            sums["image"] += (world.decoder(state) - image).square().sum().item()
            log_probs = world.reward_head(state).log_softmax(-1)
            sums["reward"] -= sum(w * log_probs[i].item() for i, w in two_bins(batch.reward[t, b].item(), world.bins))
            goes_on = world.continue_head(state).sigmoid().item()
            sums["continue"] -= math.log(1 - goes_on if (t, b) == (4, 1) else goes_on)
            p, q = posterior[t, b].flatten().tolist(), prior[t, b].flatten().tolist()
            kl = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
            sums["kl"] += kl
            sums["clipped"] += max(kl, 0.4)
    mean = {name: value / (length * rows) for name, value in sums.items()}
    assert mean["kl"] + 0.01 < mean["clipped"] < mean["kl"] + 0.39, "some frames are clipped, not all"
    expected = {f"{name}_loss": mean[name] for name in ("image", "reward", "continue")}
    expected |= {"dyn_loss": mean["clipped"], "rep_loss": mean["clipped"], "kl": mean["kl"]}
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-9), name
    weighted = 0.02 * mean["image"] + 0.7 * mean["reward"] + 1.3 * mean["continue"] + (0.9 + 0.2) * mean["clipped"]
    assert total.item() == pytest.approx(weighted, rel=1e-9)


def two_bins(target, bins):
    """The bins around a number and their shares."""
    i = max(i for i in range(len(bins)) if bins[i].item() <= target)
    low, high = bins[i].item(), bins[i + 1].item()
    return [(i, (high - target) / (high - low)), (i + 1, (target - low) / (high - low))]


def gradients(world, batch, **scales):
    """The largest gradient of each part from the terms in `scales` alone."""
    silent = dict.fromkeys(
        ["image_scale", "reward_scale", "continue_scale", "dyn_scale", "rep_scale", "barlow_scale"], 0.0
    )
    world.config = dataclasses.replace(world.config, **silent | scales)
    total, _, _ = terms(world, batch)
    grads = torch.autograd.grad(total, list(world.parameters()), allow_unused=True)
    largest = {}
    for (name, _), grad in zip(world.named_parameters(), grads, strict=True):
        part = name.removeprefix("rssm.").split(".")[0]
        size = 0.0 if grad is None else grad.abs().max().item()
        largest[part] = max(largest.get(part, 0.0), size)
    return {part for part, size in largest.items() if size > 0}


RECURRENT = {"deter_input", "stoch_input", "action_input", "hidden", "hidden_norm", "gates"}
INFERENCE = RECURRENT | {"encoder", "posterior_hidden", "posterior_logits"}


def one_frame(world):
    """A batch of one frame a row: the samples it draws lead nowhere."""
    return Batch(*(x[:1] for x in make_batch(first=())[:-1]), state=torch.rand(3, S))


def test_dyn_trains_the_prior_and_rep_the_posterior():
    """In a single frame; over time, both also train what led to the states."""
    world = make_world()
    learned = {name: gradients(world, one_frame(world), **{name: 1.0}) for name in ("dyn_scale", "rep_scale")}
    assert learned == {"dyn_scale": RECURRENT | {"prior_logits"}, "rep_scale": INFERENCE}


def test_each_head_and_the_decoder_train_encoder_and_rssm():
    world, batch = make_world(), make_batch()
    torch.nn.init.normal_(world.reward_head.last.weight)  # a head that begins with zeros passes no gradient on
    parts = {"image_scale": "decoder", "reward_scale": "reward_head", "continue_scale": "continue_head"}
    for scale, part in parts.items():
        assert gradients(world, batch, **{scale: 1.0}) == INFERENCE | {part}


def test_a_kl_below_the_free_nats_trains_nothing():
    world = make_world(free_nats=50.0)
    assert gradients(world, make_batch(), dyn_scale=1.0, rep_scale=1.0) == set()
    _, metrics, _ = terms(world, make_batch())
    assert metrics["dyn_loss"] == metrics["rep_loss"] == 50.0 and 0 < metrics["kl"] < 50


def test_without_continuation_every_episode_goes_on():
    world = make_world(continuation=False)
    state = torch.randn(2, 3, S, requires_grad=True)
    goes_on = world.continues(state)
    assert goes_on.tolist() == torch.ones(2, 3).tolist() and not goes_on.requires_grad
    assert "continue_loss" not in terms(world, make_batch())[1]
    goes_on = make_world().continues(state)
    assert goes_on.shape == (2, 3) and ((0 < goes_on) & (goes_on < 1)).all()


def test_a_reward_head_begins_with_zero():
    assert make_world().reward(torch.randn(50, S)).tolist() == [0.0] * 50


# barlow


def test_barlow_twins_is_the_published_sum():
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 7, 3, dtype=torch.float64)
    columns = [[view.flatten(0, 1)[:, i] for i in range(3)] for view in (x, y)]
    expected = 0.0
    for i, a in enumerate(columns[0]):
        for j, b in enumerate(columns[1]):
            products = (a - a.mean()) * (b - b.mean()) / (a.std() * b.std())
            c = sum(products.tolist()) / 42
            expected += (1 - c) ** 2 if i == j else 0.01 * c**2
    assert barlow_loss(x, y, 0.01).item() == pytest.approx(expected, rel=1e-7)


def test_barlow_replaces_the_decoder_in_training_the_world_model():
    world, batch = make_world(representation="barlow"), make_batch(length=6)
    total, metrics, _ = terms(world, batch)
    terms_of_total = {name.removesuffix("_loss"): x for name, x in metrics.items() if name.endswith("_loss")}
    expected = sum(getattr(TINY, f"{name}_scale") * x.item() for name, x in terms_of_total.items())
    assert "barlow" in terms_of_total and total.item() == pytest.approx(expected, rel=1e-5)
    assert gradients(world, batch, image_scale=1.0) == {"decoder"}
    assert gradients(world, batch, barlow_scale=1.0) == INFERENCE | {"projector"}


def test_barlow_s_embedding_is_a_constant():
    """Without a posterior in between, the encoder would learn embeddings that are easy to predict."""
    world, batch = make_world(representation="barlow"), make_batch(length=6)
    inference = world.infer(batch, AMP)
    constant = {name: getattr(inference, name).detach() for name in ("states", "posterior")}
    total, _ = world.loss(batch, inference._replace(**constant), AMP)
    assert inference.embed.requires_grad
    grads = torch.autograd.grad(total, list(world.encoder.parameters()), allow_unused=True)
    assert all(grad is None for grad in grads)


# sequences


def test_the_state_before_a_batch_continues_a_sequence(monkeypatch):
    world, batch = make_world().double(), batch64()
    noise = torch.randn(5, 3, 12, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn", lambda *size, **_: noise)
    whole = world.infer(batch, AMP)
    for cut in (1, 3):
        monkeypatch.setattr(torch, "randn", lambda *size, cut=cut, **_: noise[cut:])
        rest = Batch(*(x[cut:] for x in batch[:-1]), state=whole.states[cut - 1])
        second = world.infer(rest, AMP)
        torch.testing.assert_close(second.states, whole.states[cut:])
        torch.testing.assert_close(second.posterior, whole.posterior[cut:])


def test_acting_observes_what_training_infers(monkeypatch):
    world, batch = make_world().double(), batch64()
    noise = torch.randn(5, 3, 12, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn", lambda *size, **_: noise)
    states = world.infer(batch, AMP).states
    state = world.initial(3)
    assert state.shape == (3, S) and not state.any()
    for t in range(5):
        monkeypatch.setattr(torch, "randn", lambda *size, t=t, **_: noise[t].view(size))
        state = world.observe_step(state, batch.action[t], batch.image[t], batch.is_first[t], AMP)
        torch.testing.assert_close(state, states[t])


def test_noise_makes_a_step_repeatable():
    world, state, action = make_world(), torch.randn(2, 3, S), torch.randn(2, 3, 2)
    noise = world.noise(state)
    assert noise.shape == (2, 3, world.noise_dim)
    assert torch.equal(world.step(state, action, noise), world.step(state, action, noise))
    own = world.step(state.expand(20, -1, -1, -1), action.expand(20, -1, -1, -1))
    assert own.shape == (20, 2, 3, S) and own.unique(dim=0).shape[0] > 1


# images in and out


@pytest.mark.parametrize("downsampling", ["max-pool", "strided"])
def test_maps_halve_to_sixteen_pixels_and_double_back(downsampling):
    world, image = make_world(downsampling=downsampling), make_batch().image
    sizes, x = [], world._scaled(image[0])
    for layer in world.encoder.layers:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(2, 32, 32), (3, 16, 16), (4, 8, 8), (5, 4, 4)]
    embed = world.encode(image)
    assert embed.shape == (5, 3, 5 * 16)
    torch.testing.assert_close(embed[0, 1], world.encode(image[0, 1]))
    decoded = world.decode(torch.randn(5, 3, S))
    assert decoded.shape == image.shape and decoded.dtype == torch.uint8


@pytest.mark.parametrize("downsampling", ["max-pool", "strided"])
def test_an_encoder_layer_normalises_the_channels_of_a_pixel(downsampling):
    """Convolution, pooling, norm, SiLU, at a pixel away from the border, in loops over its window."""
    layer = make_world(downsampling=downsampling).double().encoder.layers[1]
    torch.nn.init.normal_(layer.norm.weight)
    torch.nn.init.normal_(layer.convolution.bias)
    x = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    weight, bias, gain = layer.convolution.weight, layer.convolution.bias, layer.norm.weight

    def convolved(channel, row, column):
        window = x[0, :, row - 2 : row + 3, column - 2 : column + 3]
        return ((window * weight[channel]).sum() + bias[channel]).item()

    pixels = [(6, 4)] if downsampling == "strided" else [(6, 4), (6, 5), (7, 4), (7, 5)]
    values = [max(convolved(channel, *pixel) for pixel in pixels) for channel in range(3)]
    scale = 1 / math.sqrt(sum(v**2 for v in values) / 3 + NORM_EPS)
    normed = [v * scale * g.item() for v, g in zip(values, gain, strict=True)]
    expected = [n / (1 + math.exp(-n)) for n in normed]
    assert layer(x)[0, :, 3, 2].tolist() == pytest.approx(expected, rel=1e-9)


def test_pixels_are_centred_for_the_encoder():
    world = make_world()
    white, black = (torch.full((1, 64, 64, 3), value, dtype=torch.uint8) for value in (255, 0))
    seen = []
    world.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    world.encode(white), world.encode(black)
    assert seen[0].unique().tolist() == [0.5] and seen[1].unique().tolist() == [-0.5]


def test_the_decoder_s_first_map_takes_channels_from_blocks_and_stoch():
    """Each block of deter gives 2 of 4 channels of every pixel, in the order pixel, channel."""
    decoder = make_world().double().decoder
    state = torch.randn(1, S, dtype=torch.float64)
    blocks = [state[0, :6] @ decoder.from_deter.weight[0], state[0, 6:12] @ decoder.from_deter.weight[1]]  # [32] each
    stoch = decoder.from_stoch(state[0, 12:])  # [64]
    first = decoder._first_map(state)[0]
    assert first.shape == (4, 4, 4)
    for row in range(4):
        for column in range(4):
            pixel = 4 * row + column
            x = torch.stack([blocks[c // 2][2 * pixel + c % 2] + stoch[4 * pixel + c] for c in range(4)])
            normed = x / (x.square().mean() + NORM_EPS).sqrt()
            torch.testing.assert_close(first[:, row, column], normed * normed.sigmoid())


def test_decoded_images_are_uint8_of_the_sigmoid():
    world = make_world()
    with torch.no_grad():
        world.decoder.last.bias.copy_(torch.tensor([-50.0, 0.0, 50.0]))
        world.decoder.last.weight.zero_()
    assert world.decode(torch.randn(2, S))[1, 5, 6].tolist() == [0, 128, 255]


# precision, settings, learning


def test_bf16_products_leave_states_and_losses_in_float32():
    world, batch = make_world(bf16=True), make_batch()
    total, metrics, inference = terms(world, batch, amp=BF16)
    assert {x.dtype for x in (total, *metrics.values(), inference.states, inference.posterior)} == {torch.float32}
    plain, _, _ = terms(make_world(), batch)
    assert total.item() == pytest.approx(plain.item(), rel=0.03) and total.item() != plain.item()
    state, action = inference.states[0].detach(), batch.action[0]
    noise = world.noise(state)
    stepped = world.step(state, action, noise)
    assert stepped.dtype == torch.float32
    torch.testing.assert_close(stepped[:, :12], make_world().step(state, action, noise)[:, :12], rtol=0, atol=0.02)
    assert not torch.equal(stepped[:, :12], make_world().step(state, action, noise)[:, :12])


@pytest.mark.parametrize("representation", ["decoder", "barlow"])
def test_no_value_is_read_by_the_host(representation):
    """Tensors without values raise where one is asked for, which a CUDA graph could not hold."""
    world, batch = make_world(representation=representation), make_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        total, _, inference = terms(world, batch)
        torch.autograd.grad(total, list(world.parameters()))
        state = world.observe_step(inference.states[0], batch.action[0], batch.image[0], batch.is_first[0], AMP)
        state = world.step(state, batch.action[0])
        assert world.decode(state).shape == (3, 64, 64, 3)
        assert world.reward(state).shape == world.continues(state).shape == (3,)


@pytest.mark.parametrize(
    "settings, error",
    [
        ({"deter": 13}, "^deter must be divisible by blocks, got deter 13 and blocks 2$"),
        ({"decoder_dense": 48}, r"^decoder_dense must be divisible by 16 \* blocks, got decoder_dense 48 and"),
        ({"unimix": 1.5}, "^unimix must be between 0 and 1, got 1.5$"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings, error):
    with pytest.raises(ValueError, match=error):
        dataclasses.replace(TINY, **settings)


def test_a_kind_is_made_by_its_name():
    assert isinstance(make_world_model(TINY, 2, True, False), CategoricalWorldModel)
    gaussian = dataclasses.replace(TINY, kind="gaussian", deter=13)  # blocks are no setting of this kind
    assert isinstance(make_world_model(gaussian, 2, True, False), GaussianWorldModel)
    assert isinstance(make_world(), WorldModelProtocol)


def test_v3_s_sizes_have_its_number_of_parameters():
    """The 12M preset's world model by its layers' shapes: products with a bias, and gains of the norms."""
    config = WorldModelConfig(
        kind="categorical", continuation=True, deter=2048, stoch=32, classes=16, blocks=8, hidden=256,
        encoder_channels=(32, 48, 64, 64), decoder_dense=1024, decoder_channels=(64, 48, 32), reward_layers=1,
        reward_hidden=256,
    )  # fmt: skip
    with torch.device("meta"):
        world = CategoricalWorldModel(config, 6)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in world.named_children()}
    layer = lambda i, o: (i + 2) * o  # noqa: E731  weights, bias and gain
    assert counts["encoder"] == layer(75, 32) + layer(25 * 32, 48) + layer(25 * 48, 64) + layer(25 * 64, 64)
    recurrent = layer(2048, 256) + layer(512, 256) + layer(6, 256) + layer(256 + 768, 2048) + (256 + 1) * 3 * 2048
    prior, posterior = layer(2048, 256) + layer(256, 256) + 257 * 512, layer(2048 + 1024, 256) + 257 * 512
    assert counts["rssm"] == recurrent + prior + posterior
    first = (256 + 1) * 1024 + layer(512, 512) + 513 * 1024 + 64
    convolutions = layer(25 * 64, 64) + layer(25 * 64, 48) + layer(25 * 48, 32) + (25 * 32 + 1) * 3
    assert counts["decoder"] == first + convolutions
    assert counts["reward_head"] == layer(2560, 256) + 257 * 255
    assert counts["continue_head"] == layer(2560, 256) + 257


@pytest.mark.parametrize(
    "representation, falls", [("decoder", {"image_loss": 0.1}), ("barlow", {"barlow_loss": 0.8, "image_loss": 0.9})]
)
def test_it_learns_a_fixed_batch(representation, falls):
    """Two colours that alternate with the action's sign, paid by it; an image that ignores the state costs 0.65."""
    sizes = dict(hidden=16, encoder_channels=(4, 4, 8, 8), decoder_channels=(16, 8, 4), reward_hidden=16)
    world = make_world(representation=representation, downsampling="strided", **sizes)
    batch = make_batch(length=4)
    sign = torch.where(batch.action[..., 0] > 0, 1.0, 0.0)
    image = (sign[..., None, None, None] * 200).expand(-1, -1, 64, 64, 3).to(torch.uint8)
    batch = batch._replace(image=image, reward=2 * sign - 1)
    optimizer = torch.optim.Adam(world.parameters(), lr=1e-2)
    history = []
    for seed in range(30):
        total, metrics, _ = terms(world, batch, seed)
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None for p in world.parameters())
        optimizer.step()
        history.append({"total": total} | metrics)
    for name, share in {"total": 0.6, "reward_loss": 0.3, **falls}.items():
        first, last = (sum(row[name].item() for row in rows) / 4 for rows in (history[:4], history[-4:]))
        assert last < share * first, (name, first, last)


def test_a_representation_that_the_gaussian_world_model_lacks_is_refused():
    with pytest.raises(ValueError, match="^representation barlow needs kind categorical, got gaussian$"):
        WorldModelConfig(representation="barlow")
