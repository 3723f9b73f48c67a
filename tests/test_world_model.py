"""Images in and out, and the world model's loss."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from dreamer_mpc.config import load_presets
from dreamer_mpc.world_model import Batch, WorldModel, WorldModelConfig
from dreamer_mpc.world_model.decoder import Decoder
from dreamer_mpc.world_model.encoder import Encoder, preprocess, to_image
from envs import make_env
from tests.support.agents import make_batch as random_batch

SMALL = dict(
    deter=16, stoch=8, hidden=32, encoder_channels=(4, 8, 16, 32), decoder_dense=64,
    decoder_channels=(16, 8, 4), reward_hidden=32,
)  # fmt: skip
AMP = torch.autocast("cpu", enabled=False)
STRONGER = dict(decoder_channels=(32, 16, 8), encoder_channels=(8, 16, 32, 64))
LEVELS = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(-1, -1, 3)  # [16, 16, 3]


def make_world(**settings):
    torch.manual_seed(0)
    return WorldModel(WorldModelConfig(**SMALL | settings), action_dim=2)


def make_batch(seed=0):
    """Random frames; row 0 starts an episode at t = 2."""
    return random_batch(seed, first=[(2, 0)])


def seeded_loss(world, batch):
    torch.manual_seed(1)
    inference = world.infer(batch, AMP)
    total, metrics = world.loss(batch, inference, AMP)
    return total, inference.states, metrics


# images


def test_a_level_stands_at_its_centre():
    x = preprocess(LEVELS)
    assert x.shape == (3, 16, 16)
    expected = (np.arange(256) // 8 + 0.5) / 32 - 0.5
    np.testing.assert_allclose(x[0].flatten().numpy(), expected, atol=1e-7)
    assert x.unique().numel() == 32
    assert -0.5 < x.min() < x.max() < 0.5


def test_dequantisation_fills_each_level_evenly():
    torch.manual_seed(0)
    image = LEVELS.expand(200, -1, -1, -1)
    offset = (preprocess(image, dequantize=True) - preprocess(image)) * 32 + 0.5  # [0, 1) of a level
    assert -1e-5 <= offset.min() < 0.001
    assert 0.999 < offset.max() <= 1 + 1e-5
    counts = torch.histc(offset, 8, 0, 1) / offset.numel()
    torch.testing.assert_close(counts, torch.full((8,), 0.125), rtol=0.03, atol=0)


def test_dequantisation_draws_for_each_pixel_and_channel():
    torch.manual_seed(0)
    x = preprocess(torch.zeros(2, 64, 64, 3, dtype=torch.uint8), dequantize=True)
    assert x.unique().numel() > 0.98 * x.numel()  # floats may coincide


def test_to_image_inverts_preprocess_within_a_level():
    image = to_image(preprocess(LEVELS))
    assert image.dtype == torch.uint8
    assert (image // 8 == LEVELS // 8).all()


def test_to_image_clamps_and_keeps_channels_last():
    x = torch.tensor([-3.0, 0.0, 3.0])[:, None, None].expand(3, 4, 5)
    image = to_image(x)
    assert image.shape == (4, 5, 3)
    assert image[1, 2].tolist() == [0, 128, 255]


def test_channels_are_not_mixed():
    image = torch.zeros(4, 6, 3, dtype=torch.uint8)
    image[1, 2, 0], image[3, 5, 2] = 255, 255
    bright = preprocess(image) > 0
    assert bright.nonzero().tolist() == [[0, 1, 2], [2, 3, 5]]


# encoder and decoder


@pytest.mark.parametrize("channels", [(32, 64, 128, 256), (4, 8, 16, 32)])
def test_the_encoder_s_outputs_are_what_it_says(channels):
    encoder = Encoder(channels)
    x = encoder(torch.zeros(2, 3, 3, 64, 64))
    assert x.shape == (2, 3, encoder.outputs)
    assert encoder.outputs == 4 * channels[-1]


def test_the_encoder_treats_images_one_by_one():
    torch.manual_seed(0)
    encoder, image = Encoder((4, 8, 16, 32)), torch.randn(2, 3, 3, 64, 64)
    together = encoder(image)
    for t in range(2):
        for b in range(3):
            torch.testing.assert_close(encoder(image[t, b]), together[t, b])


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_the_decoder_is_a_stack_of_transposed_convolutions(lead):
    torch.manual_seed(0)
    decoder = Decoder(24, 64, (16, 8, 4)).double()
    state = torch.randn(*lead, 24, dtype=torch.float64)
    x = decoder.dense(state.reshape(-1, 24))[:, :, None, None]
    for layer in decoder.layers[:-1]:
        x = F.relu(layer(x))
    expected = decoder.layers[-1](x).view(*lead, 3, 64, 64)
    torch.testing.assert_close(decoder(state), expected, rtol=1e-10, atol=1e-10)


# the loss


def test_loss_terms_are_the_likelihoods_and_the_kl():
    world, batch = make_world(image_scale=0.5, reward_scale=3.0, kl_scale=7.0, free_nats=0.0), make_batch()
    total, states, metrics = seeded_loss(world, batch)
    torch.manual_seed(1)
    target = preprocess(batch.image, dequantize=True)
    expected_states, posterior, prior = world.rssm.observe(world.encoder(target), batch.action, batch.is_first)
    torch.testing.assert_close(states, expected_states)
    unit = Normal(0.0, 1.0)
    constant = unit.log_prob(torch.tensor(0.0))
    image = -(Normal(world.decoder(states), 1.0).log_prob(target) - constant).sum((-1, -2, -3))
    reward = -(Normal(world.reward_head(states)[..., 0], 1.0).log_prob(batch.reward) - constant)
    reward[batch.is_first] = 0
    kl = kl_divergence(Independent(Normal(*posterior), 1), Independent(Normal(*prior), 1))
    expected = {"image_loss": image.mean(), "reward_loss": reward.mean(), "kl_loss": kl.mean(), "kl": kl.mean()}
    torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-5)
    weighed = 0.5 * image.mean() + 3 * reward.mean() + 7 * kl.mean()
    torch.testing.assert_close(total, weighed, rtol=1e-4, atol=1e-5)


def test_paper_base_loss_is_the_base_code_s_formula():
    settings = load_presets("default,paper-base-loss").world_model
    scales = {name: getattr(settings, name) for name in ("image_scale", "reward_scale", "kl_scale", "free_nats")}
    world, batch = make_world(**scales), make_batch()
    batch = batch._replace(is_first=torch.zeros_like(batch.is_first))  # there, the reward of every frame is scored
    total, _, _ = seeded_loss(world, batch)
    torch.manual_seed(1)
    target, states, posterior, prior = world.infer(batch, AMP)
    image = (world.decoder(states) - target).square().sum(dim=(2, 3, 4)).mean()
    reward = (world.reward(states) - batch.reward).square().mean()
    kl = kl_divergence(Normal(*posterior), Normal(*prior)).sum(-1)
    torch.testing.assert_close(total, image + reward + kl.clamp(min=3.0).mean())


def test_acting_images_are_not_dequantised():
    world, image = make_world(), make_batch().image[0]
    embeds = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        embeds.append(world.encode(image))
    assert torch.equal(*embeds)
    torch.testing.assert_close(embeds[0], world.encoder(preprocess(image)))


def test_decode_gives_images_of_the_decoder_s_mean():
    world = make_world()
    state = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    image = world.decode(state)
    assert image.shape == (2, 3, 64, 64, 3)
    expected = ((world.decoder(state) + 0.5) * 255).movedim(-3, -1)
    assert (image.float() - expected.clamp(0, 255)).abs().max() <= 0.5001


def test_the_world_model_overfits_real_frames():
    batch = dm_control_batch(length=8, batch_size=3)
    world = make_world(**STRONGER)
    optimizer = torch.optim.Adam(world.parameters(), lr=6e-3)
    target = preprocess(batch.image)
    mean_image = 0.5 * (target - target.mean((0, 1))).square().sum((-1, -2, -3)).mean()
    losses = []
    for _ in range(200):
        total, metrics = world.loss(batch, world.infer(batch, AMP), AMP)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(world.parameters(), 100.0)
        optimizer.step()
        losses.append(float(metrics["image_loss"]))
    end = np.mean(losses[-10:])
    assert end < 0.12 * losses[0]
    assert end < 0.85 * mean_image, "it tells the frames apart"


def dm_control_batch(length, batch_size):
    """Frames of cheetah-run under random actions, `length` x `batch_size`, all within one episode."""
    env = make_env("cheetah-run", action_repeat=8, render_quality="fast")
    rng = np.random.default_rng(0)
    image, _ = env.reset(seed=0)
    frames = [(image, np.zeros(6, np.float32), 0.0)]
    while len(frames) < length * batch_size:
        action = rng.uniform(-1, 1, 6).astype(np.float32)
        image, reward, *_ = env.step(action)
        frames.append((image, action, reward))
    env.close()
    image, action, reward = (np.stack(x) for x in zip(*frames))
    parts = [torch.from_numpy(x) for x in (image, action[:, :2], reward.astype(np.float32))]
    is_first = torch.arange(len(frames)) == 0
    parts += [is_first, torch.zeros_like(is_first), torch.arange(len(frames))]
    return Batch(*(x.unflatten(0, (batch_size, length)).transpose(0, 1).contiguous() for x in parts))
