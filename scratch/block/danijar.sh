# full.sh TASK SEED AGENT_STEPS LOGDIR [SETTINGS]: danijar/dreamerv3 (e3f0224) at 12M, action repeat 2, 8 environments, one update in 4 env steps
export PYTHONPATH=.:${SITE:-/tmp/dj/site}:$PYTHONPATH
exec python3 -u dreamerv3/main.py --configs dmc_vision size12m --task dmc_${1//-/_} --logdir $4 --seed $2 --env.dmc.repeat 2 --run.envs ${ENVS:-8} --run.train_ratio 512 --run.steps $3 --run.debug ${DEBUG:-False} --jax.prealloc False --agent.report False --run.log_every 30 --run.report_every 1000000 --run.save_every 1000000 --run.usage.nvsmi False --replay.size 1e5 --logger.outputs jsonl "${@:5}"
