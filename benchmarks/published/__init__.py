"""Debuggers for deep learning whose rules are published, made again on the evidence of a run.

They were written for Keras 2, MXNet or a cloud, and run nowhere on Keras 3. Each file holds one
tool, with the thresholds of its authors. Where our evidence is not what a tool looks at, the rule
takes what raises *fewer* alarms, and says so.
"""
