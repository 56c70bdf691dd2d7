"""The demo: the shipped models look at photographs, are exported, checked and timed, and a page shows it all."""

from metamixer.demo.run import Demo, ModelResult, make_demo, run_demo

__all__ = ["Demo", "ModelResult", "make_demo", "run_demo"]
