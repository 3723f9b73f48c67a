"""What a world model, actor and critic of toy size learn from 32 random episodes of the dot, with no more data.

    python scratch/equal/learn.py ours SEED 600                       (from the repository; a line for each 50 updates)
    python scratch/equal/learn.py peer SEED 600 R2DREAMER             (a checkout of NM512/r2dreamer)
    python scratch/equal/learn.py dump 0 0                            (data.npz, for learn_jax.py)
"""
import sys; sys.path[:0]=["."]
if __name__ == "__main__":
    who, seed, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]); extra=sys.argv[4:]
    import json, torch, numpy as np
    who, seed, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]); extra=sys.argv[4:]
    from pathlib import Path
    from benchmarks import common
    from benchmarks.r2dreamer import R2Dreamer
    from benchmarks.peer_learning import PeerAgent
    from dreamer_mpc.config.make import make_envs, make_agent
    from dreamer_mpc.data.collect import Collector
    from dreamer_mpc.data.replay import Replay
    from dreamer_mpc.util.counters import Counters
    from dreamer_mpc.util.device import choose_device
    torch.set_num_threads(1)
    words="--config quick,v3-small --world-model.downsampling max-pool --env tests.example_env:make --action-repeat 1 --num-envs 4 --replay.batch-size 12 --replay.sequence-length 20 --behavior.horizon 8 --device cpu".split()
    config=common.parse_settings(words)
    device=choose_device("cpu")
    envs=make_envs(config,4,device)
    torch.manual_seed(seed)
    if who.startswith("peer"):
        sizes=["batch_size=12","batch_length=20","model.imag_horizon=8",f"model.lr={config.optimizer.lr}",f"model.warmup={config.optimizer.warmup}"]+"model.deter=256 model.hidden=64 model.discrete=8 model.rssm.stoch=16 model.depth=4 model.units=64".split()
        peer=R2Dreamer(Path(extra.pop(0) if who.startswith("peer") else "."),device,"12M",False,sizes,2); agent=PeerAgent(peer,2)
        if True:
            got={}
            upd=peer.agent.update
            def update(x): got["m"]=upd(x)
            peer.agent.update=update
    else:
        agent=make_agent(config,2,device)
    class Dummy:  # random collecting needs only initial
        pass
    rep=Replay(4000,2,4,device=device,seed=seed,state_dim=agent.state_dim,across_episodes=True)
    col=Collector(envs,agent,rep,Counters(),7)
    while col.counters.episodes<8*4: col.collect(col.counters.env_steps+1,None)
    envs.close()
    if who=='dump':
        n=rep.written.min(); pos=np.arange(n); sl=[rep._ring.slots(np.full(n,s),pos) for s in range(4)]
        np.savez('data.npz',**{k:np.stack([v[torch.as_tensor(i)].numpy() for i in sl]) for k,v in rep._frames.items()}); print({k:v.shape for k,v in np.load('data.npz').items()}); sys.exit()
    torch.manual_seed(seed+100)
    names={"img":("image_loss","loss/image"),"rew":("reward_loss","loss/rew"),"dyn":("dyn_loss","loss/dyn"),"val":("value_mean","val"),"rewim":("imagined_reward","rew"),"ent":("actor_entropy","action_entropy"),"repval":("replay_value_loss","loss/repval"),"crit":("critic_loss","loss/value")}
    acc={k:[] for k in names}
    for u in range(1,n+1):
        b=rep.sample(12,20); o=agent.update(b); rep.refresh(b.index,o.states)
        m=got["m"] if who.startswith("peer") else o.metrics
        for k,(a,c) in names.items(): acc[k].append(float(m[c] if who.startswith("peer") else m[a]))
        if u%50==0:
            print(json.dumps({"who":who,"seed":seed,"u":u,**{k:round(float(np.mean(v)),3) for k,v in acc.items()}}),flush=True); acc={k:[] for k in names}
