import gzip, json, sys
t=json.load(gzip.open(sys.argv[1]))
ev=[e for e in t["traceEvents"] if e.get("cat") in("kernel","gpu_memcpy","gpu_memset")]
ev.sort(key=lambda e:e["ts"])
# 3 updates: split by biggest gaps? take third of events
n=len(ev)//3
one=ev[2*n:]
t0=one[0]["ts"]
lo=float(sys.argv[2]) if len(sys.argv)>2 else 40
for e in one:
    if e["dur"]>=lo and (len(sys.argv)<4 or str(e["args"]["stream"]) in sys.argv[3].split(",")):
        print(f'{e["ts"]-t0:8.0f} {e["dur"]:7.0f} s{e["args"]["stream"]:<4} {e["args"].get("grid")} {e["name"][:90]}')
end=max(e["ts"]+e["dur"] for e in one)-t0
print("end",end)
# per stream busy
from collections import defaultdict
b=defaultdict(float)
for e in one: b[e["args"]["stream"]]+=e["dur"]
print(dict(b))
