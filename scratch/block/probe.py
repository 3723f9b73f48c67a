"""Where mirror images of bins part, in updates of the v3 agent from the same random episodes.

    python probe.py VARIANT [UPDATES] [words of settings]
VARIANT: base eager lanes fp32 plain torchloss nolast bias; joined by + .
"""
import json, os, sys, time
import numpy as np, torch

if __name__ == "__main__":
    variant, n, words = sys.argv[1].split("+"), int(sys.argv[2]), sys.argv[3:]
    from benchmarks import common
    from dreamer_mpc.config.make import make_agent, make_envs
    from dreamer_mpc.data.collect import Collector
    from dreamer_mpc.data.replay import Replay
    from dreamer_mpc.kernels import graphs, last_layer, two_hot
    from dreamer_mpc.networks import norm_mlp
    from dreamer_mpc.networks.two_hot import TwoHot
    from dreamer_mpc.util.counters import Counters
    from dreamer_mpc.util.device import choose_device

    if "fp32" in variant: words += ["--precision", "fp32"]
    if "eager" in variant or "plain" in variant: words += ["--compile", "off"]
    if "plain" in variant: words += ["--kernels", "off"]
    config = common.parse_settings(["--config", "v3", "--env", "cheetah-run", "--num-envs", "8", "--render-quality", "small-shadows", *words])
    device = choose_device(config.device)
    if "lanes" in variant:
        for k in graphs.PRIORITIES: graphs.PRIORITIES[k] = None
    if "torchloss" in variant:
        import dreamer_mpc.networks.two_hot as nt
        class Off:
            fuses = staticmethod(lambda x: False)
        nt.two_hot = Off
    if "nolast" in variant:
        norm_mlp.last_layer = lambda x, w, b, filled: torch.baddbmm(b[:, None], x, w)
    if "bias" in variant:
        def backward(ctx, g):
            (x, weight), needs = ctx.saved_tensors, ctx.needs_input_grad
            with torch.autocast(g.device.type, enabled=False):
                dx = torch.bmm(g, weight.mT) if needs[0] else None
                dw = last_layer._over_rows(x, g) if needs[1] else None
                db = g.double().sum(1).float() if needs[2] else None
            return dx, dw, db
        last_layer.LastLayer.backward = staticmethod(backward)
    E = config.num_envs
    envs = make_envs(config, E, device)
    torch.manual_seed(0)
    agent = make_agent(config, 6, device)
    rep = Replay(20000, 6, E, device=device, seed=0, state_dim=agent.state_dim, across_episodes=True)
    col = Collector(envs, agent, rep, Counters(), 7)
    t = time.time()
    while col.counters.episodes < E: col.collect(col.counters.env_steps + 1, None)
    envs.close()
    print(variant, "frames", int(rep.written.sum()), f"{time.time() - t:.0f} s", flush=True)

    B, T = config.replay.batch_size, config.replay.sequence_length
    names = ("value_mean", "value_spread", "imagined_reward", "return_scale", "reward_loss", "image_loss", "replay_value_loss", "critic_loss", "actor_entropy", "critic_grad_norm", "actor_grad_norm", "world_model_grad_norm")
    F = 100  # bins that are never a reward

    def mirror(t):  # [N, ...] -> what share of the outer bins is equal to its mirror image
        a, b = t[:F], t.flip(0)[:F]
        far = (a - b).abs() / a.abs().clamp_min(1e-30)
        return (a == b).double().mean().item(), far.max().item()

    def heads():
        last = agent.model.world_model.reward_head.last
        yield "reward", last.weight, last.bias, lambda t: t
        last = agent.model.critic.layers.last
        yield "value0", last.weight, last.bias, lambda t: t[0].t() if t.dim() == 3 and t.shape[1] > 1 else t[0, 0]

    def state_of(name, p):
        for o in agent.optimizers.values():
            if p in o.state: return o.state[p]
        return {}

    @torch.no_grad()
    def dump(u, states):
        said = {"u": u}
        for name, w, b, form in heads():
            for what, p in (("w", w), ("b", b)):
                st = state_of(name, p)
                for k, t in (("p", p), ("m", st.get("exp_avg")), ("v", st.get("exp_avg_sq"))):
                    if t is not None:
                        e, far = mirror(form(t))
                        said[f"{name}.{what}.{k}"] = (round(e, 4), float(f"{far:.1e}"))
        with agent._amp():
            dists = {"reward": agent.model.world_model.predict_reward(states.flatten(0, 1)), "value0": agent.model.critic.predict(states.flatten(0, 1))}
        for name, d in dists.items():
            y = d.logits[..., :255]; y = y[0] if y.dim() == 3 else y
            a, b = y[:, :F], y.flip(-1)[:, :F]
            prob = y.double().softmax(-1); bins = d.bins.double()
            bins = torch.where(bins.abs() > 1e8, bins, bins)
            inner = bins.abs() < bins[255 - F].abs()
            pair = (prob[:, 128:] - prob.flip(-1)[:, 128:]) * bins[128:]
            mean = d.mean; mean = mean[0] if mean.dim() == 2 else mean
            said[f"{name}.logits"] = (round((a == b).double().mean().item(), 4), float(f"{(a - b).abs().max().item():.1e}"), "p outer", float(f"{prob[:, 0].mean().item():.1e}"))
            said[f"{name}.read"] = [round(x, 4) for x in (mean.mean().item(), mean.std().item(), pair.sum(-1).mean().item(), (pair * inner[128:]).sum(-1).mean().item())]
        print(variant, json.dumps(said), flush=True)

    acc = []
    torch.manual_seed(1)
    marks = {1, 2, 3, 4, 6, 10, 20, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1250, 1500, 2000}
    t = time.time()
    for u in range(1, n + 1):
        o = agent.update(rep.sample(B, T))
        acc.append(torch.stack([o.metrics[k].detach().float() for k in names]))
        if u in marks:
            dump(u, o.states)
            if u >= 50:
                m = torch.stack(acc).double()
                print(variant, u, json.dumps({k: round(v, 4) for k, v in zip(names, m.mean(0).tolist())}), f"{time.time() - t:.0f} s", flush=True); acc = []
    if "grads" in variant:  # mean gradients of the fast agent, of the plain one on its device, and of the plain one on a CPU
        from dreamer_mpc.agents.cut import Cut
        batch = rep.sample(B, T)
        draws = int(os.environ.get("DRAWS", 64))

        def gradients(agent, batch):
            world, learner = agent.model.world_model, agent.learner
            prepared = learner.prepare(batch)
            inference = world.infer(batch, agent._amp())
            cut = Cut(inference, world)
            loss, metrics = world.loss(batch, cut.copy, agent._amp())
            cut.back(loss)
            learned = learner.learn(inference.states, batch, prepared)
            if learned.ready: learned.ready.join()
            found = {"world_model": cut.through(inference.states, learned.states_gradient), **learned.gradients}
            return {k: torch.cat([x.detach().double().flatten() for x in v]).cpu() for k, v in found.items()}, {k: float(v) for k, v in {**metrics, **learned.metrics}.items()}

        def mean(agent, batch, n):
            halves = [{}, {}]; numbers = {}
            for i in range(n):
                g, m = gradients(agent, batch)
                for k, v in g.items(): halves[i % 2][k] = halves[i % 2].get(k, 0) + v / n
                for k, v in m.items(): numbers[k] = numbers.get(k, 0) + v / n
            cos = {k: round(torch.cosine_similarity(halves[0][k], halves[1][k], dim=0).item(), 4) for k in halves[0]}
            return {k: halves[0][k] + halves[1][k] for k in halves[0]}, numbers, cos

        state = agent.state_dict()
        def other(device, words):
            c = common.parse_settings(["--config", "v3", "--env", "cheetah-run", "--num-envs", "8", *sys.argv[3:], "--compile", "off", *words])
            a = make_agent(c, 6, torch.device(device)); a.load_state_dict(state); return a
        sizes = [(n_, p.numel()) for n_, p in agent.model.actor.named_parameters()]
        found = {}
        for name, dev, ws, k in (("fast", device, [], draws), ("fast2", device, [], draws), ("plain", device, ["--kernels", "off", "--precision", "fp32"], draws), ("cpu", "cpu", ["--kernels", "off", "--precision", "fp32"], max(2, draws // 8))):
            if name == "plain": torch.set_float32_matmul_precision("highest")
            t = time.time(); a = other(dev, ws)
            if name == "cpu": torch.set_num_threads(12)
            b = type(batch)(*(x.to(dev) if isinstance(x, torch.Tensor) else x for x in batch))
            found[name] = mean(a, b, k)
            print("grads", name, f"{time.time() - t:.0f} s, halves", found[name][2], json.dumps({k_: round(v, 4) for k_, v in found[name][1].items()}), flush=True)
            for o_ in found:
                if o_ != name: print("grads", o_, name, {k_: (round(torch.cosine_similarity(found[o_][0][k_], found[name][0][k_], dim=0).item(), 4), round((found[name][0][k_].norm() / found[o_][0][k_].norm()).item(), 4)) for k_ in found[name][0]}, flush=True)
