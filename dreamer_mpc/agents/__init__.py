"""Agents: world model, actor and critic, their training, and the interface that planners use."""
