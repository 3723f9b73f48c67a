"""Agents: world model, actor and critic, their learning, and what planners see of them."""
