"""The same with danijar/dreamerv3 (commit e3f0224, jax 0.4.33, which a line of its main.py must know: 'dot': any environment with these spaces).

    python scratch/equal/learn_jax.py SEED 600 CHECKOUT
"""
import sys, json, pathlib
sys.path.insert(0,sys.argv[3])
import numpy as np, elements, embodied, ruamel.yaml as yaml, portal
seed=int(sys.argv[1]); n=int(sys.argv[2])
import importlib
import dreamerv3.main as M
from dreamerv3.agent import Agent
configs=yaml.YAML(typ='safe').load(open(f'{sys.argv[3]}/dreamerv3/configs.yaml').read())
config=elements.Config(configs['defaults'])
for name in ("dmc_vision","size1m"): config=config.update(configs[name])
config=elements.Flags(config).parse(f"--task dot_x --logdir logs-{seed} --seed {seed} --jax.platform cpu --jax.prealloc False --jax.compute_dtype float32 --agent.dyn.rssm.deter 256 --agent.dyn.rssm.stoch 16 --agent.dyn.rssm.classes 8 --agent.dyn.rssm.hidden 64 --agent.imag_length 8 --agent.opt.lr 4e-4 --agent.opt.warmup 100 --batch_size 12 --batch_length 20 --report_length 10 --agent.report False".split()+sys.argv[4:])
portal.setup()
agent=M.make_agent(config)
D=np.load("data.npz"); S,N=D["reward"].shape
last=np.zeros((S,N),bool); last[:,:-1]=D["is_first"][:,1:]; last[:,-1]=True
act=np.zeros_like(D["action"]); act[:,:-1]=D["action"][:,1:]
B,T=12,20
deter=np.zeros((S,N,256),np.float32); stoch=np.zeros((S,N,16,8),np.float32)
rng=np.random.default_rng(seed); idx=[]
def gen():
    while True:
        s=rng.integers(0,S,B); t=rng.integers(0,N-T-1,B); p=t[:,None]+np.arange(T+1); ss=s[:,None]
        idx.append((ss,p[:,1:]))
        yield {"image":D["image"][ss,p],"reward":D["reward"][ss,p],"is_first":D["is_first"][ss,p],"is_last":last[ss,p],"is_terminal":D["is_terminal"][ss,p],"action":act[ss,p],"consec":np.zeros((B,T+1),np.int32),"stepid":np.zeros((B,T+1,20),np.uint8),"dyn/deter":deter[ss,p],"dyn/stoch":stoch[ss,p]}
class St:
    def __iter__(s): return gen()
st=iter(agent.stream(gen()))
carry=agent.init_train(B)
names={"img":"loss/image","rew":"loss/rew","dyn":"loss/dyn","val":"val","rewim":"rew","ent":"ent/action","repval":"loss/repval","crit":"loss/value"}
acc={k:[] for k in names}; used=0; first=True
for u in range(1,n+2):
    carry,outs,mets=agent.train(carry,next(st))
    if "replay" in outs:
        ss,p=idx[used]; used+=1
        deter[ss,p]=outs["replay"]["dyn/deter"]; stoch[ss,p]=outs["replay"]["dyn/stoch"]
    if mets:
        if first: print(sorted(mets)); first=False
        for k,c in names.items(): acc[k].append(float(np.mean(mets[c])) if c in mets else float("nan"))
        if (u-1)%50==0: print(json.dumps({"who":"danijar","seed":seed,"u":u-1,**{k:round(float(np.mean(v)),3) for k,v in acc.items()}}),flush=True); acc={k:[] for k in names}
