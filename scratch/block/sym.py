import sys, time
sys.path.insert(0,"/work/main")
import torch
from tests.support.agents import CATEGORICAL, make_agent, make_batch
torch.set_num_threads(1)
agent = make_agent(behavior={"kind": "v3"}, world=CATEGORICAL, kind="laprop", lr=4e-5, warmup=0)
torch.manual_seed(17)
W=agent.model.world_model.reward_head.last.weight
C=agent.model.critic.layers.last.weight
B=agent.model.world_model.reward_head.last.bias
grads={}
opt=agent.optimizers["world_model"]; step0=opt.step
def step():
    grads["r"]=W.grad.clone(); grads["b"]=B.grad.clone()
    return step0()
opt.step=step
t=time.time(); seen=False
for i in range(400):
    b=make_batch(); b=b._replace(reward=0.02*torch.rand_like(b.reward))
    m=agent.update(b).metrics
    g=grads["r"]; 
    eqg=(g[:60]==g.flip(0)[:60]); eqw=(W[:60]==W.flip(0)[:60]); eqb=(B[:60]==B.flip(0)[:60])
    gb=grads["b"]
    if not (eqg.all() and eqw.all() and eqb.all()):
        bad=(~eqg).nonzero()[:5].tolist()
        rel=((g[:60]-g.flip(0)[:60]).abs()/g[:60].abs()).max().item()
        print(i,"grad neq",(~eqg).sum().item(),bad,f"rel {rel:.1e}","bias grad neq",(gb[:60]!=gb.flip(0)[:60]).sum().item(),"weights neq",(~eqw).sum().item(),"cols",eqw.all(0).logical_not().nonzero().flatten().tolist()[:8],"rows",eqw.all(1).logical_not().nonzero().flatten().tolist()[:8], {k:round(float(v),5) for k,v in m.items() if k in("imagined_reward","value_mean","value_spread")}, flush=True)
        if seen>12: break
        seen+=1
print("critic", (C[...,:60]==C.flip(-1)[...,:60]).float().mean().item(), i, time.time()-t)
