"""Pictures of whole rows of environments, made by mujoco_warp on the device where the agent is (quality `warp`).

Imported only where that quality is asked for. The environments simulate and send scenes (`envs/scene.py`).
"""
