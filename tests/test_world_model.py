"""Images in and out, and the world model's loss."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from dreamer_mpc.config import load_presets
from dreamer_mpc.world_model import GaussianWorldModel, WorldModelConfig
from dreamer_mpc.world_model.base import weighed
from dreamer_mpc.world_model.encoder import preprocess, to_image
from tests.support.agents import make_batch as random_batch

SMALL = dict(
    deter=16, stoch=8, hidden=32, encoder_channels=(4, 8, 16, 32), decoder_dense=64,
    decoder_channels=(16, 8, 4), reward_hidden=32,
)  # fmt: skip
AMP = torch.autocast("cpu", enabled=False)
LEVELS = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(-1, -1, 3)  # [16, 16, 3]


def make_world(**settings):
    torch.manual_seed(0)
    return GaussianWorldModel(WorldModelConfig(**SMALL | settings), action_dim=2)


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


# the loss


def test_paper_base_loss_is_the_base_code_s_formula():
    settings = load_presets("default,paper-base-loss").world_model
    scales = {name: getattr(settings, name) for name in ("image_scale", "reward_scale", "kl_scale", "free_nats")}
    world, batch = make_world(**scales), make_batch()
    batch = batch._replace(is_first=torch.zeros_like(batch.is_first))  # there, the reward of every frame is scored
    total, _, _ = seeded_loss(world, batch)
    torch.manual_seed(1)
    target, states, posterior = world.infer(batch, AMP)
    prior = world.rssm.prior(states[..., : world.rssm.deter])
    image = (world.decoder(states) - target).square().sum(dim=(2, 3, 4)).mean()
    reward = (world.reward(states) - batch.reward).square().mean()
    kl = kl_divergence(Normal(*posterior), Normal(*prior)).sum(-1)
    torch.testing.assert_close(total, image + reward + kl.clamp(min=3.0).mean())


def test_terms_of_a_loss_are_weighed_by_name_and_each_needs_a_weight():
    losses = {"image": torch.tensor([[1.0, 3.0]], requires_grad=True), "kl": torch.tensor([[4.0, 8.0]])}
    total, means = weighed(losses, {"kl": 0.5, "image": 10.0})
    assert total.item() == 10 * 2 + 0.5 * 6 and total.requires_grad
    assert means == {"image_loss": torch.tensor(2.0), "kl_loss": torch.tensor(6.0)}
    assert not means["image_loss"].requires_grad
    with pytest.raises(AssertionError):
        weighed(losses, {"image": 10.0})


def test_the_continue_head_learns_which_frames_end_an_episode():
    world, batch = make_world(continuation=True), make_batch()
    batch.is_terminal[4, 0] = batch.is_terminal[2, 1] = batch.is_terminal[4, 2] = True
    image = torch.where(batch.is_terminal[..., None, None, None], 255, batch.image // 4).to(torch.uint8)
    batch = batch._replace(image=image)
    optimizer = torch.optim.Adam(world.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        total, states, _ = seeded_loss(world, batch)
        total.backward()
        torch.nn.utils.clip_grad_norm_(world.parameters(), 100.0)
        optimizer.step()
    goes_on = world.continues(states)
    # Over three seeds at most 0.04, and at least 0.997.
    assert (goes_on[batch.is_terminal] < 0.2).all() and (goes_on[~batch.is_terminal] > 0.8).all()


def test_without_a_continue_head_every_episode_goes_on():
    world = make_world()
    state = torch.randn(2, 3, world.state_dim)
    assert not world.continuation and torch.equal(world.continues(state), torch.ones(2, 3))
    assert "continue_loss" not in seeded_loss(world, make_batch())[2]


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
