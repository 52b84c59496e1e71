"""The pretext tasks that ship with sslkit, found through entry points like anybody else's.

This folder is installed as the package `sslkit_plugins`: `plugins/MODALITY/FAMILY/TASK.py`, one file per task.
"""
