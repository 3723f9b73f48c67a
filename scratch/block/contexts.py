"""Updates a second while frames are drawn beside them: not at all, by a process each, by one process, in one picture.

    python scratch/block/contexts.py [--envs 16] [--rate 9] [--seconds 6] [settings of a run]
"""

import argparse
import itertools
import multiprocessing
import time


def draw(kind, envs, rate, stop, frames):
    import mujoco
    import numpy as np
    from dm_control import suite

    own = [suite.load("cheetah", "run") for _ in range(envs)]
    for env in own:
        env.reset()
        env.physics.render(64, 64, camera_id=0)
    if kind == "tiles":
        physics = own[0].physics
        with physics.contexts.gl.make_current() as ctx:
            ctx.call(lambda: None)
        model = physics.model.ptr
        model.vis.global_.offwidth, model.vis.global_.offheight = 64 * envs, 64
        context = physics.contexts.mujoco.ptr
        options, camera = mujoco.MjvOption(), mujoco.MjvCamera()
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        scenes = [mujoco.MjvScene(model, 1000) for _ in own]
        picture = np.empty((64, 64 * envs, 3), np.uint8)

        def all_at_once():
            mujoco.mjr_resizeOffscreen(64 * envs, 64, context)
            for i, (env, scene) in enumerate(zip(own, scenes, strict=True)):
                mujoco.mjv_updateScene(env.physics.model.ptr, env.physics.data.ptr, options, None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
                mujoco.mjr_render(mujoco.MjrRect(64 * i, 0, 64, 64), scene, context)
            mujoco.mjr_readPixels(picture, None, mujoco.MjrRect(0, 0, 64 * envs, 64), context)

    while not stop.is_set():
        began = time.perf_counter()
        if kind == "tiles":
            with physics.contexts.gl.make_current() as ctx:
                ctx.call(all_at_once)
        else:
            for env in own:
                env.physics.render(64, 64, camera_id=0)
        with frames.get_lock():
            frames.value += envs
        time.sleep(max(0.0, 1 / rate - (time.perf_counter() - began)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--rate", type=float, default=9.0)
    parser.add_argument("--seconds", type=float, default=6.0)
    args, rest = parser.parse_known_args()
    from benchmarks import common
    from dreamer_mpc.config.make import make_agent
    from dreamer_mpc.util.device import choose_device

    config, device = common.parse_settings(rest or ["--config", "v3"]), choose_device("auto")
    agent = make_agent(config, common.ACTION_DIM, device)
    batches = itertools.cycle([common.random_batch(config, device) for _ in range(2)])
    for _ in range(6 if device.type == "cuda" else 1):
        agent.update(next(batches))
    common.synchronize(device)
    spawn = multiprocessing.get_context("spawn")
    for kind, processes, rate in (("none", 0, 1), ("own", args.envs, args.rate), ("one", 1, args.rate), ("tiles", 1, args.rate), ("none", 0, 1)):
        stop, frames = spawn.Event(), spawn.Value("l", 0)
        each = args.envs if processes == 1 else 1
        workers = [spawn.Process(target=draw, args=(kind, each, rate, stop, frames)) for _ in range(processes)]
        for worker in workers:
            worker.start()
        limit = time.perf_counter() + 40
        while workers and frames.value < 3 * args.envs and time.perf_counter() < limit:
            time.sleep(0.1)
        drawn, began, updates = frames.value, time.perf_counter(), 0
        while time.perf_counter() < began + args.seconds:
            agent.update(next(batches))
            updates += 1
            if updates % 4 == 0:
                common.synchronize(device)
        common.synchronize(device)
        took = time.perf_counter() - began
        print(f"{kind:6} {updates / took:7.1f} updates/s  {(frames.value - drawn) / took:7.1f} frames/s", flush=True)
        stop.set()
        for worker in workers:
            worker.join(10)
            worker.kill()


if __name__ == "__main__":
    main()
