import sys
sys.path.append("tests")
import elements, embodied, numpy as np
from example_env import DotEnv
K=[0]
class Dot(embodied.Env):
  def __init__(self, task):
    self.e=DotEnv(); self.done=True; self.k=K[0]; K[0]+=1; self.first=True
  @property
  def obs_space(self):
    return {'image': elements.Space(np.uint8,(64,64,3)),'reward': elements.Space(np.float32),'is_first': elements.Space(bool),'is_last': elements.Space(bool),'is_terminal': elements.Space(bool)}
  @property
  def act_space(self):
    return {'action': elements.Space(np.float32,(2,),-1,1),'reset': elements.Space(bool)}
  def step(self, action):
    if action['reset'] or self.done:
      o,_=self.e.reset(seed=self.k if self.first else None); self.first=False; self.done=False
      return dict(image=o,reward=np.float32(0),is_first=True,is_last=False,is_terminal=False)
    o,r,t,tr,_=self.e.step(np.asarray(action['action'])); self.done=t or tr
    return dict(image=o,reward=np.float32(r),is_first=False,is_last=bool(self.done),is_terminal=bool(t))
