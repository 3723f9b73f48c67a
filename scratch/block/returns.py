"""Mean return of each generation of training episodes of the runs so far."""
import glob, json
for path in sorted(glob.glob("/tmp/runs/*/metrics.jsonl")):
    rows = [json.loads(l) for l in open(path)]
    said = [f"{r['env_steps'] // 1000}k {r['train/return']:.0f}" for r in rows if "train/return" in r]
    keys = ("return_scale", "imagined_reward", "value_mean", "value_spread", "actor_entropy")
    last = [r for r in rows if any(k.endswith("value_mean") for k in r)][-1:]
    print(path.split("/")[-2], " ".join(said[-40:]), {k.split("/")[-1]: round(v, 3) for r in last for k, v in r.items() if k.split("/")[-1] in keys})
