"""Importing this module registers the scripted environments: `--import scripted_ids`."""

from scripted_envs import register

register()
