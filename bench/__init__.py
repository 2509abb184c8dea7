"""Benchmarks of ipfast: `python -m bench head`, `python -m bench table`, `pytest bench/`. Not installed; nobody imports it.

cases/         one file a case: its data, its contenders, the bounds it must hold
networks.py    whole networks and their data
peers/         other libraries, one file each
contender.py   what is timed
bounds.py      what a case must hold
gate.py        correctness, before any speed is printed
measure.py     interleaved repeats
memory.py      extra peak memory of one call
roofline.py    what the machine can do: copy bandwidth and matrix products, in the same run
machine.py     what the figures were measured on
record.py      results/*.jsonl
reports/       what is printed of a case, and what the README shows of it
tables.py      text for the terminal, Markdown for the README
"""
